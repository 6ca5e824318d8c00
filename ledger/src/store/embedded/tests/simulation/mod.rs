//! Simulated histories of the real desk over the real store: seeded clients, a teacher that fails, a disk that forgets what
//! was not synced, restarts, and a clock that is an argument.
//!
//! After every step the book's present equals the statement and a model of ten lines, and the teacher's own bill lies
//! within. A seed is a history: nothing here reads a clock or a random number of its own. `TUITION_HISTORIES` sets how
//! many run, `TUITION_SEED` which is the first; `cargo xtask simulate` sets both.

mod model;
mod ordered;
mod teacher;
mod world;

use std::collections::BTreeMap;

use world::World;

const HISTORIES: u64 = 1000;
const STEPS: usize = 70;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

/// Runs one history to its end.
fn history(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
        world.check();
    }
    world.finish();
    world
}

#[test]
fn thousands_of_histories_of_the_desk_keep_the_money_rules() {
    let (seed, histories) = (number("TUITION_SEED", 0), number("TUITION_HISTORIES", HISTORIES));
    let mut events = BTreeMap::<String, u64>::new();
    for seed in seed..seed + histories {
        let run = std::panic::catch_unwind(|| history(seed).events());
        let found = run.unwrap_or_else(|_| {
            panic!("history {seed} broke a rule: cargo xtask simulate --seed {seed} --histories 1")
        });
        found.into_iter().for_each(|(event, count)| *events.entry(event).or_default() += count);
    }
    println!("{histories} histories of the desk: {events:?}");
    let wanted = [
        "Reserved",
        "Settled",
        "Released",
        "Forfeited",
        "Resolved",
        "Limited",
        "Served",
        "crash",
        "power cut",
        "failed sync",
        "bought",
        "known",
        "followed",
        "streamed",
        "refused",
        "late answer",
        "settled late",
        "broken off",
        "short",
        "silent",
        "busy",
    ];
    for event in wanted {
        let count = events.get(event).copied().unwrap_or(0);
        assert!(count >= histories / 20, "too few of `{event}`: {events:?}");
    }
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..20 {
        let [one, other] = [history(seed), history(seed)];
        assert!(one.journal() == other.journal(), "seed {seed} has two histories");
    }
}
