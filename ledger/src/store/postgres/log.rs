//! The statements on the log: lock it, read what is new, write a group, begin and end a writer.
//!
//! Must not know what entries mean. Invariant: whoever writes holds the lock on `head` from before it decides until its
//! transaction ends, so the order of the log is the order of the decisions.

use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row as _};

use super::fold::{Chain, Drafted, RecordName, Row};
use crate::entry::Fact;
use crate::journal::read_payload;
use crate::query::QueryKey;
use crate::time::Timestamp;

/// A writer that was silent for so long is taken for dead, by the database's clock.
pub(crate) const STALE_S: i32 = 8;
/// Rows read at a time.
const ROWS_MAX: i64 = 500;
/// The channel on which new entries are announced.
pub(crate) const CHANNEL: &str = "tuition";

/// The number of the last entry, and the database's time.
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) now: Timestamp,
}

impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            seq: row.try_get("seq")?,
            writer: row.try_get("writer")?,
            number: row.try_get("number")?,
            payload: row.try_get("payload")?,
            chain: row.try_get("chain")?,
        })
    }
}

/// The record's name.
pub(crate) async fn name(connection: &mut PgConnection) -> Result<RecordName, sqlx::Error> {
    let name: Vec<u8> = sqlx::query_scalar("SELECT store FROM tuition.head").fetch_one(connection).await?;
    name.try_into().map_err(|_| sqlx::Error::Protocol("the record's name has another length".into()))
}

/// Where the log ends; nobody is kept waiting.
pub(crate) async fn head(connection: &mut PgConnection) -> Result<Head, sqlx::Error> {
    let found = sqlx::query_as(
        "SELECT seq, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM tuition.head",
    );
    let (seq, now): (i64, i64) = found.fetch_one(connection).await?;
    Ok(Head { seq: seq.cast_unsigned(), now: Timestamp(now.cast_unsigned()) })
}

/// Begins a transaction and locks the log until it ends.
pub(crate) async fn lock(connection: &mut PgConnection) -> Result<Head, sqlx::Error> {
    sqlx::query("BEGIN").execute(&mut *connection).await?;
    let found = sqlx::query_as(
        "SELECT seq, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM tuition.head FOR UPDATE",
    );
    let (seq, now): (i64, i64) = found.fetch_one(connection).await?;
    Ok(Head { seq: seq.cast_unsigned(), now: Timestamp(now.cast_unsigned()) })
}

/// Ends the transaction; what it wrote is durable.
pub(crate) async fn commit(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("COMMIT").execute(connection).await.map(drop)
}

/// Ends the transaction; what it wrote never was.
pub(crate) async fn roll_back(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("ROLLBACK").execute(connection).await.map(drop)
}

/// The next entries behind `seq`, in order.
pub(crate) async fn behind(connection: &mut PgConnection, seq: u64) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as(
        "SELECT seq, writer, number, payload, chain FROM tuition.entry WHERE seq > $1 ORDER BY seq LIMIT $2",
    )
    .bind(seq.cast_signed())
    .bind(ROWS_MAX)
    .fetch_all(connection)
    .await
}

/// Writes a group of `writer`, and announces it; false where that writer was ended by another.
pub(crate) async fn write(
    connection: &mut PgConnection,
    writer: i64,
    group: &[Drafted],
    ends: bool,
) -> Result<bool, sqlx::Error> {
    let Some(last) = group.last() else { return Ok(true) };
    let (mut blobs, mut answers) = (Blobs::default(), std::collections::BTreeMap::new());
    for drafted in group {
        blobs.add(drafted);
        answers.extend(drafted.answers.iter().map(|answered| (answered.key, *answered)));
    }
    let answers: Vec<_> = answers.into_values().collect();
    let text = |drafted: &Drafted| {
        String::from_utf8(drafted.draft.payload().to_vec())
            .expect("an entry is written as JSON, which is text")
    };
    let written = sqlx::query_scalar(
        "WITH entries AS (
            INSERT INTO tuition.entry (seq, writer, number, payload, chain)
            SELECT seq, $1, number, payload, chain
            FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::bytea[]) AS new (seq, number, payload, chain)
        ), blobs AS (
            INSERT INTO tuition.blob (seq, part, bytes)
            SELECT * FROM unnest($6::bigint[], $7::integer[], $8::bytea[])
        ), answers AS (
            INSERT INTO tuition.answer (key, settled, reserved, item)
            SELECT * FROM unnest($9::bytea[], $10::bigint[], $11::bigint[], $12::integer[])
            ON CONFLICT (key) DO UPDATE
            SET settled = excluded.settled, reserved = excluded.reserved, item = excluded.item
        ), moved AS (
            UPDATE tuition.head SET seq = $13
        ), alive AS (
            UPDATE tuition.writer
            SET entries = $14, chain = $15, ended = $16, heartbeat = clock_timestamp()
            WHERE id = $1 AND NOT ended
            RETURNING id
        ), told AS (
            SELECT pg_notify($17, $13::text)
        )
        SELECT (SELECT count(*) FROM alive) FROM told",
    );
    let alive: i64 = written
        .bind(writer)
        .bind(group.iter().map(|drafted| drafted.seq.cast_signed()).collect::<Vec<_>>())
        .bind(group.iter().map(|drafted| drafted.chain.number.cast_signed()).collect::<Vec<_>>())
        .bind(group.iter().map(text).collect::<Vec<_>>())
        .bind(group.iter().map(|drafted| drafted.chain.chain.to_vec()).collect::<Vec<_>>())
        .bind(blobs.seqs)
        .bind(blobs.parts)
        .bind(blobs.bytes)
        .bind(answers.iter().map(|answered| answered.key.as_bytes().to_vec()).collect::<Vec<_>>())
        .bind(answers.iter().map(|answered| answered.settled.cast_signed()).collect::<Vec<_>>())
        .bind(answers.iter().map(|answered| answered.reserved.cast_signed()).collect::<Vec<_>>())
        .bind(
            answers
                .iter()
                .map(|answered| i32::try_from(answered.item).unwrap_or(i32::MAX))
                .collect::<Vec<_>>(),
        )
        .bind(last.seq.cast_signed())
        .bind(last.chain.number.cast_signed())
        .bind(last.chain.chain.to_vec())
        .bind(ends)
        .bind(CHANNEL)
        .fetch_one(&mut *connection)
        .await?;
    for (key, seq) in group.iter().filter_map(|drafted| Some((drafted.forgotten?, drafted.seq))) {
        erase(connection, &key, seq.cast_signed()).await?;
    }
    Ok(alive == 1)
}

/// Erases what entries before `seq` recorded under `key`: question, answer and signals, what came of failed calls that asked
/// it, and the envelope of an exchange of which no other answer is left. Reads every entry that names the key.
async fn erase(connection: &mut PgConnection, key: &QueryKey, seq: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM tuition.answer WHERE key = $1")
        .bind(key.as_bytes().to_vec())
        .execute(&mut *connection)
        .await?;
    let naming: Vec<(i64, String)> = sqlx::query_as(
        "SELECT seq, payload FROM tuition.entry WHERE seq < $1 AND strpos(payload, $2) > 0 ORDER BY seq",
    )
    .bind(seq)
    .bind(key.to_string())
    .fetch_all(&mut *connection)
    .await?;
    let (mut seqs, mut parts, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (seq, payload) in naming {
        let Ok((entry, _)) = read_payload(payload.as_bytes()) else { continue };
        match entry.fact {
            Fact::Reserved { hold, .. } => failed.push(format!("{{\"hold\":{},", hold.0)),
            Fact::Settled { items, .. } => {
                for (item, _) in (0_i32..).zip(items).filter(|(_, item)| item.key == *key) {
                    seqs.extend([seq; 3]);
                    parts.extend([3 * item + 1, 3 * item + 2, 3 * item + 3]);
                }
            }
            _ => {}
        }
    }
    sqlx::query(
        "UPDATE tuition.blob SET bytes = NULL
         FROM unnest($1::bigint[], $2::integer[]) AS gone (seq, part)
         WHERE blob.seq = gone.seq AND blob.part = gone.part",
    )
    .bind(&seqs)
    .bind(parts)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE tuition.blob SET bytes = NULL
         WHERE seq = ANY($1) AND part = 0 AND NOT EXISTS (
             SELECT FROM tuition.blob AS other
             WHERE other.seq = blob.seq AND other.part > 0 AND other.bytes IS NOT NULL)",
    )
    .bind(&seqs)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE tuition.blob SET bytes = NULL
         WHERE seq IN (SELECT entry.seq FROM tuition.entry, unnest($2::text[]) AS hold
                       WHERE entry.seq < $1 AND strpos(payload, '\"Forfeited\":' || hold) > 0)",
    )
    .bind(seq)
    .bind(failed)
    .execute(connection)
    .await
    .map(drop)
}

/// The columns of the blobs of a group.
#[derive(Default)]
struct Blobs {
    seqs: Vec<i64>,
    parts: Vec<i32>,
    bytes: Vec<Option<Vec<u8>>>,
}

impl Blobs {
    fn add(&mut self, drafted: &Drafted) {
        for (part, bytes) in (0..).zip(drafted.draft.stored()) {
            self.seqs.push(drafted.seq.cast_signed());
            self.parts.push(part);
            self.bytes.push(bytes.map(<[u8]>::to_vec));
        }
    }
}

/// Begins a writer, inside a transaction that has the lock; gives its number.
pub(crate) async fn begin_writer(
    connection: &mut PgConnection,
    record: &RecordName,
    program: &str,
) -> Result<i64, sqlx::Error> {
    let next: i64 = sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM tuition.writer")
        .fetch_one(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO tuition.writer (id, program, chain) VALUES ($1, $2, $3)")
        .bind(next)
        .bind(program)
        .bind(Chain::start(record, next).chain.to_vec())
        .execute(connection)
        .await?;
    Ok(next)
}

/// Whether anybody ever wrote here.
pub(crate) async fn has_writers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM tuition.writer)").fetch_one(connection).await
}

/// Lets the transaction take as long as it takes.
pub(crate) async fn take_time(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    for setting in ["idle_in_transaction_session_timeout", "statement_timeout"] {
        let set = sqlx::query("SELECT set_config($1, '0', true)").bind(setting);
        set.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Leaves a writer that will write no more, as one that was not heard of for long.
pub(crate) async fn leave_writer(
    connection: &mut PgConnection,
    writer: i64,
    ended: bool,
) -> Result<(), sqlx::Error> {
    let left = sqlx::query("UPDATE tuition.writer SET heartbeat = to_timestamp(0), ended = $2 WHERE id = $1");
    left.bind(writer).bind(ended).execute(connection).await.map(drop)
}

/// Says that `writer` lives; false where it was ended.
pub(crate) async fn beat(connection: &mut PgConnection, writer: i64) -> Result<bool, sqlx::Error> {
    let beaten =
        sqlx::query("UPDATE tuition.writer SET heartbeat = clock_timestamp() WHERE id = $1 AND NOT ended")
            .bind(writer)
            .execute(connection)
            .await?;
    Ok(beaten.rows_affected() == 1)
}

/// Writers but `writer` that have been silent for too long, while the server was there to hear them.
pub(crate) async fn stale(connection: &mut PgConnection, writer: i64) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT id FROM tuition.writer
         WHERE NOT ended AND id <> $1
         AND greatest(heartbeat, pg_postmaster_start_time()) < clock_timestamp() - make_interval(secs => $2)",
    )
    .bind(writer)
    .bind(f64::from(STALE_S))
    .fetch_all(connection)
    .await
}

/// Ends those of `writers` that still are silent, inside a transaction that has the lock; gives them.
pub(crate) async fn end_stale(
    connection: &mut PgConnection,
    writers: &[i64],
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "UPDATE tuition.writer SET ended = true
         WHERE id = ANY($1) AND NOT ended
         AND heartbeat < clock_timestamp() - make_interval(secs => $2)
         RETURNING id",
    )
    .bind(writers)
    .bind(f64::from(STALE_S))
    .fetch_all(connection)
    .await
}

/// Whether some writer was heard of lately.
pub(crate) async fn is_written(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM tuition.writer
         WHERE NOT ended AND heartbeat > clock_timestamp() - make_interval(secs => $1))",
    )
    .bind(f64::from(STALE_S))
    .fetch_one(connection)
    .await
}

/// The entries with these numbers, as text.
pub(crate) async fn payloads(
    connection: &mut PgConnection,
    seqs: &[i64],
) -> Result<Vec<(i64, String)>, sqlx::Error> {
    sqlx::query_as("SELECT seq, payload FROM tuition.entry WHERE seq = ANY($1)")
        .bind(seqs)
        .fetch_all(connection)
        .await
}

/// The blobs at these places; one that was erased has no bytes.
pub(crate) async fn blobs(
    connection: &mut PgConnection,
    seqs: &[i64],
    parts: &[i32],
) -> Result<Vec<(i64, i32, Option<Bytes>)>, sqlx::Error> {
    let found: Vec<(i64, i32, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT seq, part, bytes FROM tuition.blob JOIN unnest($1::bigint[], $2::integer[]) AS wanted (seq, part)
         USING (seq, part)",
    )
    .bind(seqs)
    .bind(parts)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|(seq, part, bytes)| (seq, part, bytes.map(Bytes::from))).collect())
}
