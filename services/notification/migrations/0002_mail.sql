-- Mails about notifications. A row waits for its mail while mail_due_at is set, and may be tried from then on.

ALTER TABLE notifications
    ADD COLUMN mail_due_at   timestamptz,
    ADD COLUMN mail_attempts integer NOT NULL DEFAULT 0;

-- The postman's work list; as small as the number of mails that wait.
CREATE INDEX notifications_mail_due ON notifications (mail_due_at) WHERE mail_due_at IS NOT NULL;
