//! Logs that were edited, and what is said of them.

use super::*;
use crate::entry::Origin;
use crate::store::postgres::fold::Fold;
use crate::store::samples::calls;
use crate::time::Timestamp;

const NAME: RecordName = *b"0123456789abcdef";

/// A log of two writers, and what its head and its writers say.
#[derive(Clone)]
struct Log {
    rows: Vec<Row>,
    name: Option<RecordName>,
    end: i64,
    says: Vec<Says>,
}

impl Log {
    /// Entries of writer 1, but each third of writer 2: 1 1 2 1 1 2 1 1.
    fn new() -> Self {
        let (mut fold, mut rows) = (Fold::new(NAME), Vec::new());
        for seq in 1..=8_u64 {
            let writer = if seq % 3 == 0 { 2 } else { 1 };
            let limit = fold.book.limit(calls(seq), Origin::Command, Timestamp(seq)).unwrap();
            let drafted = fold.append(writer, &limit, vec![]).unwrap();
            let payload = String::from_utf8(drafted.draft.payload().to_vec()).unwrap();
            let (number, chain) = (drafted.chain.number.cast_signed(), drafted.chain.chain.to_vec());
            rows.push(Row { seq: seq.cast_signed(), writer, number, payload, chain });
        }
        let says = |(writer, chain): (&i64, &Chain)| Says {
            writer: *writer,
            entries: chain.number.cast_signed(),
            chain: chain.chain.to_vec(),
            last: None,
        };
        Self { rows, name: Some(NAME), end: 8, says: fold.chains.writers.iter().map(says).collect() }
    }

    fn row(&mut self, seq: i64) -> &mut Row {
        self.rows.iter_mut().find(|row| row.seq == seq).unwrap()
    }

    fn remove(&mut self, seq: i64) {
        self.rows.retain(|row| row.seq != seq);
    }

    fn swap(&mut self, one: i64, other: i64) {
        for row in &mut self.rows {
            row.seq = match row.seq {
                seq if seq == one => other,
                seq if seq == other => one,
                seq => seq,
            };
        }
    }

    /// Chains a row anew, as somebody who knows the format would.
    fn forge(&mut self, seq: i64, before: i64) {
        let before = self.rows.iter().find(|row| row.seq == before).unwrap().chain.clone();
        let row = self.row(seq);
        let number = row.number.cast_unsigned() - 1;
        let chain = Chain { number, chain: before.try_into().unwrap() };
        row.chain = chain.next(seq.cast_unsigned(), row.payload.as_bytes()).chain.to_vec();
    }

    /// As the database would give it.
    fn judge(mut self) -> Vec<String> {
        self.rows.sort_by_key(|row| row.seq);
        let (mut survey, mut faults) = (Survey::new(self.name.map(|name| (name, self.end))), Vec::new());
        let chain = |writer: i64, number: i64| {
            let found = self.rows.iter().find(|row| (row.writer, row.number) == (writer, number));
            found.map(|row| row.chain.clone())
        };
        for row in &self.rows {
            let before = (row.number > 1).then(|| chain(row.writer, row.number - 1)).flatten();
            survey.take(row, before.as_deref(), &mut faults);
        }
        let says = self.says.iter().cloned();
        let says: Vec<_> = says.map(|says| Says { last: chain(says.writer, says.entries), ..says }).collect();
        faults.extend(survey.end(&says));
        faults.iter().map(ToString::to_string).collect()
    }
}

#[track_caller]
fn check(edit: impl FnOnce(&mut Log), expected: &[&str]) {
    let mut log = Log::new();
    edit(&mut log);
    assert_eq!(log.judge(), expected);
}

#[test]
fn of_an_untouched_log_nothing_is_said() {
    check(|_| {}, &[]);
    let empty = |log: &mut Log| {
        (log.rows, log.end) = (vec![], 0);
        let start = |writer| Chain::start(&NAME, writer).chain.to_vec();
        log.says.iter_mut().for_each(|says| (says.entries, says.chain) = (0, start(says.writer)));
    };
    check(empty, &[]);
}

#[test]
fn what_was_changed_is_named_and_what_is_behind_it_is_not() {
    let payload = |log: &mut Log| log.row(4).payload = log.row(4).payload.replace('4', "5");
    check(payload, &["entry 4 of the record does not continue the chain of writer 1"]);
    // With its own chain made right again: what is recorded behind it does not continue that.
    let forged = |log: &mut Log| {
        payload(log);
        log.forge(4, 2);
    };
    check(forged, &["entry 5 of the record does not continue the chain of writer 1"]);
    let last = |log: &mut Log| log.row(8).payload.push(' ');
    check(last, &["entry 8 of the record does not continue the chain of writer 1"]);
    let cut = |log: &mut Log| log.row(6).chain.truncate(9);
    check(
        cut,
        &[
            "entry 6 of the record does not continue the chain of writer 2",
            "the chain of writer 2 does not end with entry 6 as the writer says",
        ],
    );
}

#[test]
fn what_is_missing_is_named_with_the_writer_whose_it_was() {
    let unproven = |number, before| {
        format!(
            "entry {number} of the record cannot be checked: number {before} of writer 1, which it continues, is missing"
        )
    };
    check(|log| log.remove(2), &["entry 2 is missing from the record", &unproven(4, 2)]);
    let several = |log: &mut Log| [1, 2, 3].into_iter().for_each(|seq| log.remove(seq));
    check(
        several,
        &[
            "entries 1 to 3 are missing from the record, 3 in all",
            &unproven(4, 2),
            "entry 6 of the record cannot be checked: number 1 of writer 2, which it continues, is missing",
        ],
    );
    let tail = |log: &mut Log| [7, 8].into_iter().for_each(|seq| log.remove(seq));
    check(
        tail,
        &[
            "entries 7 to 8 are missing from the record, 2 in all",
            "writer 1 has 4 entries, and says that it has 6",
        ],
    );
    let cut = |log: &mut Log| {
        tail(log);
        log.end = 6;
    };
    check(cut, &["writer 1 has 4 entries, and says that it has 6"]);
}

#[test]
fn what_changed_its_place_or_its_number_is_named_alone() {
    let misplaced = |number, writer, found, belongs| {
        format!("entry {number} of the record is number {found} of writer {writer}, not {belongs}")
    };
    check(|log| log.swap(4, 5), &[&misplaced(4, 1, 4, 3), &misplaced(5, 1, 3, 4)]);
    check(|log| log.swap(2, 7), &[&misplaced(2, 1, 5, 2), &misplaced(7, 1, 2, 5)]);
    check(|log| log.swap(7, 8), &[&misplaced(7, 1, 6, 5), &misplaced(8, 1, 5, 6)]);
    // Of two writers.
    check(|log| log.swap(1, 6), &[&misplaced(1, 2, 2, 1), &misplaced(6, 1, 1, 5)]);
    check(|log| log.row(5).number = 40, &[&misplaced(5, 1, 40, 4)]);
    check(|log| log.row(8).number = 40, &[&misplaced(8, 1, 40, 6)]);
    for number in [0, -1, i64::MIN, i64::MAX] {
        check(|log| log.row(5).number = number, &[&misplaced(5, 1, number, 4)]);
    }
    let renumbered = |log: &mut Log| {
        log.row(5).number = 40;
        log.forge(5, 4);
    };
    check(
        renumbered,
        &[&misplaced(5, 1, 40, 4), "entry 7 of the record does not continue the chain of writer 1"],
    );
    let texts = |log: &mut Log| {
        let payload = log.row(4).payload.clone();
        log.row(4).payload = std::mem::replace(&mut log.row(6).payload, payload);
    };
    check(
        texts,
        &[
            "entry 4 of the record does not continue the chain of writer 1",
            "entry 6 of the record does not continue the chain of writer 2",
        ],
    );
}

#[test]
fn what_head_and_writers_say_is_held_against_the_rows() {
    let beyond = |number, writer, end| {
        format!(
            "entry {number} of the record, of writer {writer}, stands behind its end: it says that it has {end} entries"
        )
    };
    check(|log| log.end = 6, &[&beyond(7, 1, 6), &beyond(8, 1, 6)]);
    check(|log| log.end = 7, &[&beyond(8, 1, 7)]);
    check(|log| log.end = 9, &["entry 9 is missing from the record"]);
    let far = |log: &mut Log| log.row(8).seq = i64::MAX;
    check(
        far,
        &[
            "entry 8 is missing from the record",
            &beyond(i64::MAX, 1, 8),
            &format!("entry {} of the record does not continue the chain of writer 1", i64::MAX),
        ],
    );
    check(|log| log.says[1].entries = 9, &["writer 2 has 2 entries, and says that it has 9"]);
    check(|log| log.says[1].entries = -1, &["writer 2 has 2 entries, and says that it has -1"]);
    check(
        |log| log.says[1].chain[0] ^= 1,
        &["the chain of writer 2 does not end with entry 6 as the writer says"],
    );
    check(
        |log| drop(log.says.remove(0)),
        &["entry 8 of the record is of writer 1, and there is no such writer"],
    );
    let outside = |log: &mut Log| {
        let mut row = log.row(1).clone();
        row.seq = -1;
        log.rows.push(row.clone());
        row.seq = 3;
        log.rows.push(row);
    };
    check(
        outside,
        &[
            "a row of writer 1 has the number -1, which no entry can have there",
            "a row of writer 1 has the number 3, which no entry can have there",
        ],
    );
    check(|log| log.name = None, &[]);
    let nameless = |log: &mut Log| {
        log.name = None;
        log.remove(2);
        log.row(8).payload.push(' ');
    };
    check(
        nameless,
        &[
            "entry 2 is missing from the record",
            "entry 4 of the record cannot be checked: number 2 of writer 1, which it continues, is missing",
            "entry 8 of the record does not continue the chain of writer 1",
        ],
    );
    check(
        |log| log.name = Some([0; 16]),
        &[
            "entry 1 of the record does not continue the chain of writer 1",
            "entry 3 of the record does not continue the chain of writer 2",
        ],
    );
    // Put in a second time, chained as if it belonged there.
    let again = |log: &mut Log| {
        let row = Row { seq: 9, ..log.row(5).clone() };
        log.rows.push(row);
        log.forge(9, 4);
        log.end = 9;
    };
    check(
        again,
        &[
            "entry 9 of the record is number 4 of writer 1, not 7",
            "writer 1 has 7 entries, and says that it has 6",
        ],
    );
    let of_another = |log: &mut Log| log.row(5).writer = 2;
    check(
        of_another,
        &[
            "entry 5 of the record is number 4 of writer 2, not 2",
            "entry 7 of the record is number 5 of writer 1, not 4",
            "writer 1 has 5 entries, and says that it has 6",
            "writer 2 has 3 entries, and says that it has 2",
        ],
    );
}

#[test]
fn several_edits_of_one_log_are_all_named() {
    let several = |log: &mut Log| {
        log.remove(2);
        log.row(3).payload.push(' ');
        log.swap(7, 8);
        log.says[1].entries = 7;
        let row = Row { seq: 10, writer: 2, number: 3, ..log.row(1).clone() };
        log.rows.push(row);
    };
    check(
        several,
        &[
            "entry 2 is missing from the record",
            "entry 3 of the record does not continue the chain of writer 2",
            "entry 4 of the record cannot be checked: number 2 of writer 1, which it continues, is missing",
            "entry 7 of the record is number 6 of writer 1, not 5",
            "entry 8 of the record is number 5 of writer 1, not 6",
            "entry 10 of the record, of writer 2, stands behind its end: it says that it has 8 entries",
            "entry 10 of the record does not continue the chain of writer 2",
            "writer 2 has 3 entries, and says that it has 7",
        ],
    );
}
