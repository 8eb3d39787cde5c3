-- The role of a service needs no right to create or drop tables: these functions make and drop the partitions of a day
-- with the rights of the owner of the tables (docs/decisions/0013-database-roles.md). They only add: the version before
-- this one runs as the owner, and makes and drops partitions by itself.
--
-- A caller chooses outbox or inbox, and a day. The fixed search_path keeps out objects of the caller, and
-- the bounds are literals that no setting of the caller's session changes.

-- Makes the partition of today or of one of the next days.
CREATE FUNCTION make_partition(parent text, day date) RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    today     date := (now() AT TIME ZONE 'UTC')::date;
    partition text := parent || to_char(day, '_YYYYMMDD');
    bounds    text[];
BEGIN
    IF day < today OR day > today + 7 THEN
        RAISE EXCEPTION 'a partition of % cannot be made: expected today or one of the next 7 days', day
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    CASE parent
        WHEN 'outbox' THEN
            SELECT array_agg(to_char(day + n, 'YYYY-MM-DD') || ' 00:00:00+00' ORDER BY n)
            INTO bounds FROM generate_series(0, 1) AS n;
        WHEN 'inbox' THEN
            -- The smallest UUIDv7 of the first millisecond of a day.
            SELECT array_agg(lpad(to_hex(extract(epoch FROM day + n)::bigint * 1000), 12, '0')
                             || '70008000000000000000' ORDER BY n)
            INTO bounds FROM generate_series(0, 1) AS n;
        ELSE
            RAISE EXCEPTION '% has no partitions of a day: expected outbox or inbox', parent
                USING ERRCODE = 'invalid_parameter_value';
    END CASE;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING ALL)', partition, parent || '_default');
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                   parent, partition, bounds[1], bounds[2]);
END $$;

-- Drops the partition of a day that ended at least 7 days ago; how long after that the service decides (see
-- src/partitions.rs). False, and nothing is dropped, when a subscriber may still need an event in it.
CREATE FUNCTION drop_partition(parent text, day date) RETURNS boolean
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    today     date := (now() AT TIME ZONE 'UTC')::date;
    partition text := parent || to_char(day, '_YYYYMMDD');
    newest    bigint;
    settled   bigint;
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
        IF newest > coalesce(settled, 0) THEN
            RETURN false;
        END IF;
    END IF;
    EXECUTE format('DROP TABLE public.%I', partition);
    RETURN true;
END $$;

-- Everybody may execute a new function. The task `migrate` grants it to the role of the service.
REVOKE EXECUTE ON FUNCTION make_partition(text, date), drop_partition(text, date) FROM PUBLIC;
