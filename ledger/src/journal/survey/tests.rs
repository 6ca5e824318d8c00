//! Journals with every kind of damage: each fault is named once, and everything else is still read.

use super::super::tests::{HEADER, written};
use super::*;

/// The entries that are given, by number, and what is wrong.
fn survey(bytes: &[u8], stood: Option<u64>) -> (Vec<u64>, Vec<JournalError>) {
    let limit = bytes.len() as u64;
    let frames = Frames::from_start(bytes, limit).unwrap();
    let (mut numbers, mut faults) = (Vec::new(), Vec::new());
    for read in Survey::new(frames, limit, stood.map(|stood| (stood, "the checkpoint"))) {
        match read {
            Ok(frame) => numbers.push(frame.number),
            Err(fault) => faults.push(fault),
        }
    }
    (numbers, faults)
}

/// The journal as its frames.
fn frames() -> Vec<Vec<u8>> {
    let (bytes, offsets) = written();
    let ends = offsets.iter().skip(1).copied().chain([bytes.len() as u64]);
    let frame = |(start, end): (u64, u64)| bytes[start as usize..end as usize].to_vec();
    offsets.iter().copied().zip(ends).map(frame).collect()
}

fn joined(frames: &[Vec<u8>]) -> Vec<u8> {
    [HEADER.encode().to_vec(), frames.concat()].concat()
}

/// As one who knows the format would: the entry is another, its checksums are right, the chain is left as it was.
fn forge(frame: &mut [u8], number: u64) {
    let head: [u8; HEADER_BYTES] = frame[..HEADER_BYTES].try_into().unwrap();
    let mut header = Header::decode(&head, &HEADER.writer).unwrap();
    let payload = &mut frame[HEADER_BYTES..][..header.payload_bytes as usize];
    let at = payload.windows(5).position(|text| text == b"\"at\":").unwrap() + 5;
    payload[at] = b'2';
    (header.number, header.payload_crc) = (number, crc32fast::hash(payload));
    frame[..HEADER_BYTES].copy_from_slice(&header.encode(&HEADER.writer));
}

#[track_caller]
fn check(frames: &[Vec<u8>], left_out: &[u64], expected: &[&str]) {
    let (numbers, faults) = survey(&joined(frames), None);
    assert_eq!(faults.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    let all: Vec<u64> = (1..=12).filter(|number| !left_out.contains(number)).collect();
    assert_eq!(numbers, all, "{expected:?}");
}

#[test]
fn a_journal_without_faults_reads_as_ever() {
    check(&frames(), &[], &[]);
    let mut torn = joined(&frames());
    torn.truncate(torn.len() - 3);
    assert_eq!(survey(&torn, None).0.len(), 11);
    assert!(survey(&torn, None).1.is_empty(), "a torn tail was taken for damage");
    let (numbers, faults) = survey(&torn, Some(torn.len() as u64));
    assert_eq!((numbers.len(), faults.len()), (11, 1));
    assert!(matches!(faults[0], JournalError::Corrupt { number: 12, .. }), "{faults:?}");
}

#[test]
fn a_flipped_byte_is_named_once_and_costs_one_entry() {
    let (bytes, offsets) = written();
    for position in super::super::FILE_HEADER_BYTES..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut flipped = bytes.clone();
            flipped[position] ^= bit;
            let number = offsets.iter().filter(|offset| **offset <= position as u64).count() as u64;
            let (numbers, faults) = survey(&flipped, Some(bytes.len() as u64));
            let JournalError::Corrupt { number: named, offset, .. } = &faults[0] else {
                panic!("{position}: {faults:?}")
            };
            assert_eq!((*named, *offset), (number, offsets[number as usize - 1]), "{position}");
            assert_eq!(faults.len(), 1, "{position}: {faults:?}");
            let others: Vec<u64> = (1..=12).filter(|other| *other != number).collect();
            assert_eq!(numbers, others, "{position}");
        }
    }
}

#[test]
fn an_entry_that_was_forged_is_named_and_those_behind_it_are_not() {
    let (_, offsets) = written();
    for number in 1..=12_u64 {
        let mut frames = frames();
        forge(&mut frames[number as usize - 1], number);
        let offset = offsets[number as usize - 1];
        check(
            &frames,
            &[],
            &[&format!("entry {number} at offset {offset} of the journal does not continue the chain")],
        );
    }
}

#[test]
fn entries_that_were_taken_out_are_named_with_their_count() {
    let (_, offsets) = written();
    for number in 1..=11_u64 {
        let mut frames = frames();
        frames.remove(number as usize - 1);
        let offset = offsets[number as usize - 1];
        let expected = format!(
            "entry {number} is missing from the journal, 1 in all: the next that is there stands at offset {offset}"
        );
        check(&frames, &[number], &[&expected]);
    }
    let mut frames = frames();
    frames.drain(4..7);
    let expected = format!(
        "entries 5 to 7 are missing from the journal, 3 in all: the next that is there stands at offset {}",
        offsets[4]
    );
    check(&frames, &[5, 6, 7], &[&expected]);
}

#[test]
fn entries_out_of_place_are_named_and_read_in_their_order() {
    for (one, other) in [(3, 4), (2, 9), (1, 12), (11, 12)] {
        let mut frames = frames();
        frames.swap(one - 1, other - 1);
        let (numbers, faults) = survey(&joined(&frames), None);
        assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
        let (one, other) = (one as u64, other as u64);
        let found: Vec<_> = faults
            .iter()
            .map(|fault| match fault {
                JournalError::Unfit(Fault::Misplaced { number, belongs, .. }) => (*number, *belongs),
                fault => panic!("{fault}"),
            })
            .collect();
        assert_eq!(found, [(one, other), (other, one)]);
    }
    // One that was moved is one fault, not one for each that it passed.
    let mut moved = frames();
    let frame = moved.remove(1);
    moved.insert(8, frame);
    let (numbers, faults) = survey(&joined(&moved), None);
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
    assert!(
        matches!(faults[..], [JournalError::Unfit(Fault::Misplaced { number: 2, belongs: 9, .. })]),
        "{faults:?}"
    );
}

#[test]
fn every_fault_of_several_is_named() {
    let mut frames = frames();
    frames[1][HEADER_BYTES + 9] ^= 1;
    forge(&mut frames[3], 4);
    frames[5][20] ^= 1;
    frames[6][30] ^= 1;
    frames.swap(8, 9);
    frames.remove(10);
    let (numbers, faults) = survey(&joined(&frames), None);
    assert_eq!(numbers, [1, 3, 4, 5, 8, 9, 10, 12]);
    let named: Vec<_> = faults
        .iter()
        .map(|fault| match fault {
            JournalError::Corrupt { number, .. } => ("damaged", *number),
            JournalError::Unfit(Fault::Unreadable { first, last, .. }) => {
                assert_eq!((*first, *last), (6, 7));
                ("unreadable", *first)
            }
            JournalError::Unfit(Fault::Missing { first, .. }) => ("missing", *first),
            JournalError::Unfit(Fault::Misplaced { number, .. }) => ("misplaced", *number),
            JournalError::Unfit(Fault::Unchained { first, .. }) => ("unchained", *first),
            fault => panic!("{fault}"),
        })
        .collect();
    let mut sorted = named.clone();
    sorted.sort_by_key(|(_, number)| *number);
    let expected = [
        ("damaged", 2),
        ("unchained", 4),
        ("unreadable", 6),
        ("misplaced", 9),
        ("misplaced", 10),
        ("missing", 11),
    ];
    assert_eq!(sorted, expected, "{faults:?}");
}

#[test]
fn what_was_put_in_is_named() {
    let (_, offsets) = written();
    let mut twice = frames();
    twice.insert(6, twice[2].clone());
    check(&twice, &[], &[&format!("entry 3 stands in the journal a second time, at offset {}", offsets[6])]);
    let mut stuffed = frames();
    stuffed.insert(6, b"nothing of ours".to_vec());
    let (numbers, faults) = survey(&joined(&stuffed), None);
    assert_eq!(numbers.len(), 12);
    assert!(matches!(faults[..], [JournalError::Corrupt { number: 7, .. }]), "{faults:?}");
    stuffed.insert(3, b"nothing either".to_vec());
    let (numbers, faults) = survey(&joined(&stuffed), None);
    assert_eq!(numbers.len(), 12);
    let [JournalError::Corrupt { number: 4, .. }, JournalError::Unfit(second)] = &faults[..] else {
        panic!("{faults:?}")
    };
    assert!(matches!(second, Fault::Inserted { before: 7, bytes: 15, .. }), "{second}");
}

#[test]
fn a_gap_that_was_closed_by_new_numbers_is_one_fault() {
    let (_, offsets) = written();
    let mut closed = frames();
    closed.remove(4);
    for number in 5..=11 {
        forge(&mut closed[number as usize - 1], number);
    }
    let expected =
        format!("entries 5 to 11 at offset {} of the journal do not continue the chain", offsets[4]);
    check(&closed, &[12], &[&expected]);
}
