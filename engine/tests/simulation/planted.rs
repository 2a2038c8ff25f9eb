//! Bugs that are planted one at a time, to show that the simulation finds each.

use penstock_engine::simulation::Bug;

use super::seeds::Seeds;

/// Where the hunt for each begins: any seed will do.
const FIRST: u64 = 1;

pub fn by_name(name: &str) -> Bug {
    let named = |bug: &Bug| format!("{bug:?}") == name;
    Bug::FOUND
        .iter()
        .chain(Bug::NOT_FOUND)
        .copied()
        .find(|bug| named(bug))
        .unwrap_or_else(|| panic!("no bug is called {name}"))
}

/// Looks for each bug in `count` seeds.
pub fn hunt(count: u64) {
    let mut missed = Vec::new();
    for bug in Bug::FOUND {
        match found(*bug, count) {
            Some(text) => println!("{text}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found in {count} seeds: {missed:?}");
}

/// Finds a bug: a seed that breaks a law with it, and none without it.
fn found(bug: Bug, count: u64) -> Option<String> {
    let mut first = FIRST;
    while first < FIRST + count {
        let left = FIRST + count - first;
        let ran = Seeds { first, count: left, planted: Some(format!("{bug:?}")), all: false }.run();
        let broken = ran.broken.first()?;
        if (Seeds { first: broken.seed, count: 1, planted: None, all: false }).run().broken.is_empty() {
            let took = ran.took.as_secs_f64();
            return Some(format!("{bug:?}: seed {}, {took:.1} s: {}", broken.seed, broken.law));
        }
        first = broken.seed + 1;
    }
    None
}
