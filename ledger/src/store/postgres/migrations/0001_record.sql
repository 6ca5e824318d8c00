-- One record: entries in one order, chained per writer. docs/postgres.md says what each table is for.

CREATE TABLE tuition.head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    store bytea NOT NULL CHECK (octet_length(store) = 16),
    seq bigint NOT NULL DEFAULT 0
);
INSERT INTO tuition.head (store) VALUES (uuid_send(gen_random_uuid()));

CREATE TABLE tuition.writer (
    id bigint PRIMARY KEY,
    program text NOT NULL,
    started timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended boolean NOT NULL DEFAULT false,
    entries bigint NOT NULL DEFAULT 0,
    chain bytea NOT NULL
);
CREATE INDEX writer_alive ON tuition.writer (heartbeat) WHERE NOT ended;

CREATE TABLE tuition.entry (
    seq bigint PRIMARY KEY,
    writer bigint NOT NULL REFERENCES tuition.writer,
    number bigint NOT NULL,
    payload text NOT NULL,
    chain bytea NOT NULL,
    UNIQUE (writer, number)
);

CREATE TABLE tuition.blob (
    seq bigint NOT NULL REFERENCES tuition.entry,
    part integer NOT NULL,
    bytes bytea,
    PRIMARY KEY (seq, part)
);
-- The bodies are compressed already.
ALTER TABLE tuition.blob ALTER COLUMN bytes SET STORAGE EXTERNAL;

CREATE TABLE tuition.answer (
    key bytea PRIMARY KEY,
    settled bigint NOT NULL REFERENCES tuition.entry,
    reserved bigint NOT NULL REFERENCES tuition.entry,
    item integer NOT NULL
);
