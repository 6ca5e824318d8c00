//! Tests of the embedded store: on a real folder, and on a disk that forgets what was not synced.

mod backup;
mod damage;
mod disk;
mod folder;
mod forget;
mod histories;
mod order;
mod repair;
mod simulation;
