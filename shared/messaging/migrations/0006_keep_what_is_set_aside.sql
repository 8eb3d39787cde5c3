-- Drops the partition of a day that ended at least 7 days ago; how long after that the service decides (see
-- src/partitions.rs). False, and nothing is dropped, when a subscriber may still need an event in it, or when one is set
-- aside: the partition has its only copy.
CREATE OR REPLACE FUNCTION drop_partition(parent text, day date) RETURNS boolean
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    today     date := (now() AT TIME ZONE 'UTC')::date;
    partition text := parent || to_char(day, '_YYYYMMDD');
    newest    bigint;
    settled   bigint;
    set_aside boolean;
BEGIN
    -- A day before Christ has the digits of one after.
    IF day < DATE '2000-01-01' OR day > today - 8 THEN
        RAISE EXCEPTION 'the partition of % cannot be dropped: expected a day that ended 7 days ago', day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF parent NOT IN ('outbox', 'inbox') THEN
        RAISE EXCEPTION '% has no partitions of a day: expected outbox or inbox', parent
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF parent = 'outbox' THEN
        EXECUTE format('SELECT max(position) FROM public.%I', partition) INTO newest;
        SELECT position INTO settled FROM public.outbox_checkpoint ORDER BY id LIMIT 1;
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I JOIN public.outbox_set_aside USING (position))', partition)
            INTO set_aside;
        IF newest > coalesce(settled, 0) OR set_aside THEN
            RETURN false;
        END IF;
    END IF;
    EXECUTE format('DROP TABLE public.%I', partition);
    RETURN true;
END $$;
