//! Simulated worlds, by seed: the engine's verbs in several processes over one store, with everything going
//! wrong that can. `simulation/laws.rs` says what must hold.
//!
//! A seed is run with `PENSTOCK_SIM_FIRST=SEED PENSTOCK_SIM_SEEDS=1 PENSTOCK_SIM_HISTORY=1 cargo test -p
//! penstock-engine --features simulation --test simulation
//! every_seed -- --nocapture`; the same seed gives the same history. Further settings:
//! `PENSTOCK_SIM_PLANT`, the name of a bug to plant (`simulation/planted.rs`),
//! `PENSTOCK_SIM_HUNT=COUNT`, to look for each planted bug in so many seeds, `PENSTOCK_SIM_JOBS`, programs
//! side by side, `PENSTOCK_SIM_WORLD`, the number of a kind of world (`Setting::drawn`): then a seed gives
//! another history than without.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "simulation/actors.rs"]
mod actors;
#[path = "simulation/clock.rs"]
mod clock;
#[path = "simulation/disk.rs"]
mod disk;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/harm.rs"]
mod harm;
#[path = "simulation/laws.rs"]
mod laws;
#[path = "simulation/planted.rs"]
mod planted;
#[path = "simulation/rng.rs"]
mod rng;
#[path = "simulation/seeds.rs"]
mod seeds;
#[path = "simulation/setting.rs"]
mod setting;
#[path = "simulation/stage.rs"]
mod stage;
#[path = "simulation/store.rs"]
mod store;
#[path = "simulation/story.rs"]
mod story;
#[path = "simulation/watch.rs"]
mod watch;
#[path = "simulation/world.rs"]
mod world;

use seeds::{Seeds, number};

/// Seeds of a replay, and how many of them may differ: what runs beside the simulation now and then changes
/// which of two threads of a process comes first. On a busy machine 1 to 3 of 30 were seen to differ; the aim is 1 of 100.
const REPLAYED: u64 = 30;
const MAY_DIFFER: usize = 6;

#[test]
fn every_seed_keeps_the_laws() {
    let seeds = Seeds {
        first: number("PENSTOCK_SIM_FIRST").unwrap_or(1),
        count: number("PENSTOCK_SIM_SEEDS").unwrap_or(200),
        planted: std::env::var("PENSTOCK_SIM_PLANT").ok(),
        all: std::env::var("PENSTOCK_SIM_ALL").is_ok(),
    };
    let ran = seeds.run();
    println!("{}", ran.summary());
    ran.broken.iter().skip(1).for_each(|broken| println!("seed {}: {}", broken.seed, broken.law));
    if let Some(broken) = ran.broken.first() {
        panic!("{}", broken.text());
    }
}

#[test]
fn a_seed_replays() {
    let seeds = Seeds { first: 1, count: REPLAYED, planted: None, all: true };
    let (once, twice) = (seeds.run(), seeds.run());
    let same = |seed: &u64| once.digests.get(seed) == twice.digests.get(seed);
    let differ: Vec<&u64> = once.digests.keys().filter(|seed| !same(seed)).collect();
    println!("{} of {REPLAYED} seeds differ: {differ:?}", differ.len());
    assert!(once.digests.len() as u64 == REPLAYED && differ.len() <= MAY_DIFFER, "{differ:?} differ");
}

#[test]
fn planted_bugs_are_found() {
    let Some(count) = number("PENSTOCK_SIM_HUNT") else {
        println!("not asked for: PENSTOCK_SIM_HUNT=5000");
        return;
    };
    planted::hunt(count);
}

/// What the tests above start: a program that runs some seeds on one processor.
#[test]
fn child() {
    seeds::child();
}
