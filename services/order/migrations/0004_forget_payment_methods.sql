-- How far into the event log payment methods are forgotten: everything up to `position`. One row, which a replica locks
-- while it takes a step.
CREATE TABLE methods_forgotten (
    position bigint  NOT NULL,
    one_row  boolean PRIMARY KEY DEFAULT true,

    CONSTRAINT methods_forgotten_has_one_row CHECK (one_row)
);
INSERT INTO methods_forgotten (position) VALUES (0);
