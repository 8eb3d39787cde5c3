-- Mails that are not tried again: the server has refused them for good, or all attempts have failed. Such a row has no
-- mail_due_at, so that a release that does not know these columns leaves it alone, too. Setting mail_due_at to now() and
-- mail_attempts to 0 sends it again.

ALTER TABLE notifications
    ADD COLUMN mail_given_up_at     timestamptz,
    ADD COLUMN mail_given_up_reason text;

COMMENT ON COLUMN notifications.mail_given_up_at IS 'when the mail was given up; null if it was sent, waits or is not wanted';
COMMENT ON COLUMN notifications.mail_given_up_reason IS 'why: what the mail server or the mail library has answered';
