-- What is needed to find out the outcome of a call whose response was lost. A replica of the version before this one
-- leaves these columns as they are.
ALTER TABLE payments
    -- The encoded body of the charge's request, stored before the first call and sent as it is: an idempotency key
    -- stands for one body, also after an upgrade. Null in rows of the version before this one.
    ADD COLUMN request    text,
    -- Number of the idempotency key for what is to be done now. 0 is the payment's id alone (with "-refund" for the
    -- refund); later keys end in "-<number>". It grows when nothing was done, and nothing will be, under the last one.
    ADD COLUMN key_number integer NOT NULL DEFAULT 0,
    -- How many of the attempts were answered, or never had a connection. The others may still be executed.
    ADD COLUMN answered   integer NOT NULL DEFAULT 0,
    -- The provider's name for a refund that it has accepted and not completed yet.
    ADD COLUMN refund_id  text,
    ADD COLUMN created_at timestamptz;

-- Only for new rows, those of the version before this one included: how old a charge can be when it is searched for.
ALTER TABLE payments ALTER COLUMN created_at SET DEFAULT now();
