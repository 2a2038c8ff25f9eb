//! Stories: what people do in an order that hurts now and then, over and over, with everything else as the
//! seed has it.

use std::collections::VecDeque;

use super::actors::Task;
use super::disk::Disk;
use super::rng::Rng;
use super::setting::Setting;

/// What a world's people do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Story {
    /// Two machines get the same new data in one night. Later all who have it are forgotten, what they stored
    /// is collected, and another machine gets that data again.
    Returns,
    /// While a backup is under way, what it relies on is forgotten elsewhere, and collected by several.
    Overtaken,
    /// A backup relies on what is condemned while it is under way. The next one of that machine has it for its
    /// parent, which is forgotten meanwhile.
    Heir,
}

/// A step of a story.
pub enum Step {
    Begin(Task),
    /// All who are under way end first.
    Rest,
}

impl Story {
    /// Once through the story, with names nobody else has: no machine has a parent.
    pub fn told(self, rng: &mut Rng, setting: &Setting, gc: &Task, number: u64) -> VecDeque<Step> {
        let first = rng.below(setting.kinds);
        let file = |n: u64| (first + n) % setting.kinds;
        let mut names = 0;
        let named = |name: String, files: Vec<u64>| {
            let disk = Disk::of(files, setting.hole_bytes);
            Step::Begin(Task::Backup { name, disk, tracked: false, stream: false, workers: 1 })
        };
        let mut backup = |files: Vec<u64>| {
            names += 1;
            named(format!("story {number}.{names}"), files)
        };
        let of_heir = |files: Vec<u64>| named(format!("heir {number}"), files);
        let (x, y, z) = (file(0), file(1), file(2));
        let (forget, collect) = (|| Step::Begin(Task::ForgetFile(x)), || Step::Begin(gc.clone()));
        match self {
            Story::Returns => VecDeque::from([
                backup(vec![y, x]),
                backup(vec![x]),
                Step::Rest,
                backup(vec![y]),
                backup(vec![z]),
                Step::Rest,
                forget(),
                Step::Rest,
                collect(),
                Step::Rest,
                backup(vec![y, x]),
                Step::Rest,
            ]),
            Story::Heir => VecDeque::from([
                backup(vec![x]),
                Step::Rest,
                of_heir(vec![x, y]),
                forget(),
                collect(),
                Step::Rest,
                of_heir(vec![x, y, z]),
                forget(),
                collect(),
                collect(),
                Step::Rest,
            ]),
            Story::Overtaken => VecDeque::from([
                backup(vec![x]),
                Step::Rest,
                backup(vec![y, x, z]),
                forget(),
                collect(),
                collect(),
                collect(),
                collect(),
                Step::Rest,
            ]),
        }
    }
}
