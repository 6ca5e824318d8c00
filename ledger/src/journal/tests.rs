//! The format: golden bytes, cut at every byte, flipped at every byte.

use super::frame::{HEADER_BYTES, MAGIC};
use super::*;
use crate::entry::{Cause, Entry, Exchange, Fact, HoldId, Origin, SettledItem, Tally};
use crate::money::Amount;
use crate::store::samples::{calls, claim, key, price, settlement};
use crate::time::Timestamp;

pub(super) const HEADER: FileHeader =
    FileHeader { writer: *b"0123456789abcdef", created_ms: 1_795_374_245_000 };
/// Format 1, as version 0.1.0 wrote it. It may never change; a new format gets a new number.
const GOLDEN: &[u8] = include_bytes!("../../tests/data/journal-1");

/// One entry of every kind, with their blobs; bodies that compress are in the last but one only.
fn entries() -> Vec<(Entry, Vec<Vec<u8>>)> {
    let Exchange { who, .. } = claim(&["a"]).exchange;
    let amount = Amount { calls: 1, tokens: 100, usd: "0.5".parse().unwrap() };
    let reserved = |hold, name: &str| Fact::Reserved {
        hold: HoldId(hold),
        exchange: claim(&[name]).exchange,
        amount,
        price: Some(price().digest()),
        metered: true,
        budgets: vec!["all".into()],
    };
    let tally = Tally { who, model: "m".into(), known: 1, followed: 2, saved: amount, refused: 0 };
    let settled = Fact::Settled {
        hold: HoldId(4),
        usage: settlement(&["d"]).usage,
        fee: amount,
        whole_hold: false,
        media: "application/json".into(),
        items: vec![SettledItem { key: key("d"), share: amount }],
    };
    let facts = vec![
        (Fact::Opened { program: "0.1.0".into() }, vec![]),
        (Fact::Priced { digest: price().digest(), price: price() }, vec![]),
        (Fact::Limited { budget: calls(10), origin: Origin::Config }, vec![]),
        (reserved(1, "a"), vec![]),
        (Fact::Released { hold: HoldId(1), cause: Cause::Status(429) }, vec![]),
        (reserved(2, "b"), vec![]),
        (Fact::Forfeited { hold: HoldId(2), cause: Cause::BrokenOff }, vec![b"half an answ".to_vec()]),
        (Fact::Resolved { hold: HoldId(2), billed: true, why: "bill".into() }, vec![]),
        (Fact::Served { tallies: vec![tally] }, vec![]),
        (reserved(4, "d"), vec![]),
        (settled, vec![]),
        (Fact::Closed, vec![]),
    ];
    let at = |index: usize| Timestamp(HEADER.created_ms + index as u64);
    facts
        .into_iter()
        .enumerate()
        .map(|(index, (fact, blobs))| (Entry { at: at(index), fact }, blobs))
        .collect()
}

/// The journal of [`entries`], each synced before the next, and where each begins.
pub(super) fn written() -> (Vec<u8>, Vec<u64>) {
    let mut bytes = HEADER.encode().to_vec();
    let (mut chain, mut offsets) = (HEADER.chain(), Vec::new());
    for (index, (entry, blobs)) in entries().into_iter().enumerate() {
        let answer = settlement(&["d"]);
        let packed = match entry.fact {
            Fact::Settled { .. } => pack_settlement(&answer.envelope, &answer.items).unwrap(),
            _ => blobs.iter().map(|blob| Packed::new(blob).unwrap()).collect(),
        };
        let synced = bytes.len() as u64;
        offsets.push(synced);
        let draft = Draft::new(&entry, packed).unwrap();
        let before = bytes.len() as u64;
        chain = draft.write(&mut bytes, &HEADER.writer, index as u64 + 1, synced, &chain);
        assert_eq!(draft.bytes(), bytes.len() as u64 - before);
    }
    (bytes, offsets)
}

/// Everything that reads, and what stands at the end.
fn read(bytes: &[u8]) -> Result<(Vec<Frame>, Option<Torn>), JournalError> {
    let mut frames = Frames::from_start(bytes, bytes.len() as u64)?;
    let mut found = Vec::new();
    loop {
        match frames.step()? {
            Step::Frame(frame) => found.push(*frame),
            Step::End => return Ok((found, None)),
            Step::Bad(torn) => return Ok((found, Some(judge(bytes, &HEADER, torn, None)?))),
        }
    }
}

fn facts(frames: &[Frame]) -> Vec<Entry> {
    frames.iter().map(|frame| frame.entry.clone()).collect()
}

#[test]
fn format_1_is_read_and_written_as_ever() {
    let (frames, torn) = read(GOLDEN).unwrap();
    assert_eq!(torn, None);
    let expected: Vec<Entry> = entries().into_iter().map(|(entry, _)| entry).collect();
    assert_eq!(facts(&frames), expected);
    let forfeited = frames[6].blobs[0].open().unwrap().unwrap();
    assert_eq!(forfeited, b"half an answ".as_slice());
    let records =
        unpack_settlement(&claim(&["d"]).exchange, true, &frames[10].entry, &frames[10].blobs).unwrap();
    assert_eq!(records[0].answer, settlement(&["d"]).items[0].1);
    assert_eq!(records[0].query.key(), key("d"));
    // What zstd makes of a body may change with its version; everything else is written byte for byte.
    let (bytes, offsets) = written();
    let plain = usize::try_from(offsets[10]).unwrap();
    assert!(bytes[..plain] == GOLDEN[..plain], "what is written is no longer format 1");
    assert!(
        frames[10].blobs.iter().any(|blob| format!("{blob:?}").contains("state: 1")),
        "nothing is compressed"
    );
}

#[test]
fn a_journal_cut_anywhere_reads_as_a_prefix() {
    let (bytes, offsets) = written();
    let whole = facts(&read(&bytes).unwrap().0);
    for length in 0..bytes.len() {
        let cut = &bytes[..length];
        if length < FILE_HEADER_BYTES {
            assert!(read(cut).is_err(), "{length}");
            continue;
        }
        let (frames, torn) = read(cut).unwrap();
        let count = offsets.iter().skip(1).filter(|end| **end <= length as u64).count();
        assert_eq!(facts(&frames), whole[..count], "{length}");
        let at_end = offsets[count] == length as u64;
        assert_eq!(torn.map(|torn| torn.offset), (!at_end).then_some(offsets[count]), "{length}");
    }
}

#[test]
fn a_flipped_byte_is_damage_and_in_the_last_entry_a_torn_tail() {
    let (bytes, offsets) = written();
    let whole = facts(&read(&bytes).unwrap().0);
    let last = *offsets.last().unwrap();
    for position in 0..bytes.len() {
        for bit in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[position] ^= bit;
            let number = offsets.iter().filter(|offset| **offset <= position as u64).count();
            match read(&flipped) {
                Err(JournalError::Corrupt { number: found, offset, .. }) => {
                    assert_eq!((found, offset), (number as u64, offsets[number - 1]), "{position}");
                }
                Err(error) => assert!(position < FILE_HEADER_BYTES, "{position}: {error}"),
                Ok((frames, torn)) => {
                    assert!(position as u64 >= last, "{position}: damage was taken for a torn tail");
                    assert_eq!(facts(&frames), whole[..whole.len() - 1], "{position}");
                    assert_eq!(torn.map(|torn| torn.offset), Some(last), "{position}");
                }
            }
        }
    }
}

#[test]
fn one_frame_read_alone_is_checked_as_well() {
    let (bytes, offsets) = written();
    let at = usize::try_from(offsets[10]).unwrap();
    assert_eq!(read_frame(&bytes[..], &HEADER, offsets[10]).unwrap().number, 11);
    let end = usize::try_from(offsets[11]).unwrap();
    for position in at..end {
        let mut flipped = bytes.clone();
        flipped[position] ^= 0x10;
        let found = read_frame(&flipped[..], &HEADER, offsets[10]);
        assert!(matches!(found, Err(JournalError::Corrupt { .. })), "{position}: {found:?}");
    }
}

#[test]
fn frames_in_an_answer_or_of_another_journal_are_no_frames() {
    let (bytes, offsets) = written();
    let at = usize::try_from(offsets[3]).unwrap();
    let torn = Torn { offset: offsets[1], number: 2, why: "it is cut off" };
    let mut tail = bytes[..usize::try_from(offsets[1]).unwrap()].to_vec();
    tail.extend_from_slice(b"????");
    tail.extend_from_slice(&bytes[at..at + HEADER_BYTES]);
    assert!(bytes[at..].starts_with(MAGIC));
    let judged = judge(&tail[..], &HEADER, torn.clone(), None);
    assert!(matches!(judged, Err(JournalError::Corrupt { number: 2, .. })), "{judged:?}");
    // Somebody who does not know the journal's name cannot make a header that counts.
    let other = FileHeader { writer: [9; 16], ..HEADER };
    assert_eq!(judge(&tail[..], &other, torn, None).unwrap().offset, offsets[1]);
}

#[test]
fn an_erased_body_leaves_the_money_and_the_chain() {
    let (mut bytes, offsets) = written();
    let at = usize::try_from(offsets[6]).unwrap();
    let end = usize::try_from(offsets[7]).unwrap();
    // The only blob of the frame: its header and twelve bytes at the end.
    let blob = end - 12 - 9;
    assert_eq!(bytes[blob], 0);
    bytes[blob] = 2;
    bytes[blob + 9..end].fill(0);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[blob..blob + 5]);
    bytes[blob + 5..blob + 9].copy_from_slice(&crc.finalize().to_le_bytes());
    assert!(at < blob);
    let (frames, torn) = read(&bytes).unwrap();
    assert_eq!((frames.len(), torn), (12, None));
    assert_eq!(frames[6].blobs[0].open(), Ok(None));
}

#[test]
fn what_a_later_version_wrote_is_refused_by_name() {
    let mut newer = HEADER.encode().to_vec();
    newer[8] = 2;
    assert!(matches!(read(&newer), Err(JournalError::NewerFormat { found: 2 })));
    assert!(matches!(read(b"something else that is long enough to be one"), Err(JournalError::NotAJournal)));
    // A fact that is not known stands in a whole frame: that is no torn tail.
    let mut bytes = HEADER.encode().to_vec();
    let payload = br#"{"entry":{"at":1,"fact":{"Donated":{}}},"blobs":[]}"#;
    let chain = frame::link(&HEADER.chain(), 1, payload);
    let header = frame::Header {
        payload_bytes: u32::try_from(payload.len()).unwrap(),
        blobs_bytes: 0,
        number: 1,
        synced: 40,
        chain,
        payload_crc: crc32fast::hash(payload),
    };
    bytes.extend_from_slice(&header.encode(&HEADER.writer));
    bytes.extend_from_slice(payload);
    let found = read(&bytes);
    assert!(matches!(found, Err(JournalError::NotUnderstood { number: 1, offset: 40, .. })), "{found:?}");
}

#[test]
fn what_is_too_large_is_refused_before_it_is_written() {
    let entry = Entry { at: Timestamp(0), fact: Fact::Opened { program: "x".repeat(65 << 20) } };
    assert!(matches!(Draft::new(&entry, vec![]), Err(JournalError::TooLarge { what: "an entry", .. })));
}
