//! Nothing: the targets in `targets/` are programs, and what they assert stands in the rooms (`fuzzing.rs` of each).
