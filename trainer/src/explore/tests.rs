//! What an `[explore]` table means, and what it may not say.

use super::*;

fn config(text: &str) -> ExploreConfig {
    toml::from_str(text).unwrap()
}

#[test]
fn made_inputs_are_a_part_of_the_budget() {
    let by_calls = config("calls = 70");
    assert_eq!((by_calls.real(100), by_calls.made(100, 30)), (30, 70));
    // There are fewer real inputs than were allowed for: as many are made as was said.
    assert_eq!(by_calls.made(100, 20), 70);
    let by_real = config("real = 30");
    assert_eq!((by_real.real(100), by_real.made(100, 30)), (30, 70));
    // All that is left.
    assert_eq!(by_real.made(100, 20), 80);
    let rounds = |text: &str, total: usize| config(&format!("calls = 1\n{text}")).rounds(total);
    assert_eq!(rounds("kind = 'choice'", 10), [3, 3, 2, 2]);
    assert_eq!(rounds("kind = 'gradient'\nrounds = 9", 3), [1, 1, 1]);
    assert_eq!(rounds("kind = 'random'", 10), [10], "no round looks at the answers before");
    assert_eq!(rounds("long_tail = true\nrounds = 2", 10), [5, 5]);
}

#[test]
fn what_does_not_fit_is_named() {
    for (text, words) in [
        ("calls = 100", "`explore.calls` is 100; it must be 1 or more and below `budget.calls`"),
        ("calls = 0", "`explore.calls` is 0"),
        ("real = 100", "`explore.real` is 100; it must be 1 or more and below `budget.calls`"),
        ("kind = 'random'", "`explore.calls` is missing; it must be there, or `explore.real` in its place"),
        ("calls = 1\nreal = 1", "`explore.calls` is 1; it must be absent where `explore.real` is there"),
        ("calls = 1\nsigma = 0.0", "`explore.sigma` is 0; it must be above 0"),
        ("calls = 1\nkind = 'gradient'\nsigma = -1.0", "`explore.sigma` is -1; it must be 0 or more"),
        ("calls = 1\nstep = 0.0", "`explore.step` is 0"),
        ("calls = 1\nsteps = 0", "`explore.steps` is 0"),
        ("calls = 1\ncandidates = 0", "`explore.candidates` is 0"),
        ("calls = 1\nrounds = 0", "`explore.rounds` is 0"),
        (
            "calls = 1\nkind = 'mixup'\nlong_tail = true",
            "`explore.long_tail` is true; it must be false with kind `mixup`",
        ),
        (
            "calls = 1\nkind = 'noise'\ngenerator = { kind = 'vae' }",
            "`explore.generator` is `vae`; it must be absent with kinds `mixup` and `noise`",
        ),
        (
            "calls = 1\nkind = 'gradient'\ngenerator = { kind = 'onnx', encoder = 'e', decoder = 'd' }",
            "`explore.generator` is `onnx`; it must be `pca`, `autoencoder` or `vae` with kind `gradient`",
        ),
        ("calls = 1\ngenerator = { kind = 'pca', latent = 0 }", "`explore.generator.latent` is 0"),
    ] {
        let refused = config(text).check(100).expect_err(text).to_string();
        assert!(refused.contains(words), "{text}: {refused}");
    }
    for text in
        ["calls = 99", "real = 1\nkind = 'gradient'\nsigma = 0.0", "calls = 9\ngenerator = { kind = 'vae' }"]
    {
        config(text).check(100).unwrap();
    }
    assert!(toml::from_str::<ExploreConfig>("calls = 1\nstepz = 2").is_err());
}
