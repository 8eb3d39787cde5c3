-- How far into the event log payment methods are forgotten: everything up to `position`. One row, which a replica locks
-- while it takes a step.
CREATE TABLE methods_forgotten (
    position bigint NOT NULL
);
INSERT INTO methods_forgotten VALUES (0);
