//! What kind of world a seed makes: each has some faults and habits, and not others, so that rare things
//! come together in some of them.

use std::time::Duration;

use super::rng::Rng;
use super::story::Story;

const HOUR_MS: u64 = 3_600_000;

/// What is drawn once for a world.
#[derive(Debug)]
pub struct Setting {
    pub hosts: u64,
    pub repos: usize,
    /// Processes at a time, and in all.
    pub crowd: usize,
    pub processes: usize,
    /// How often a process is a backup, a collection, a forget, a restore, a verification, a copy,
    /// a repair, an extension of locks.
    pub weights: [u64; 8],
    /// What its people do; at random if nothing.
    pub story: Option<Story>,
    /// Of 1000 times that points are forgotten, so many are of all that have some file.
    pub forget_file: u64,
    /// Of 1000 processes, so many do two things.
    pub twice: u64,
    pub grace: Duration,
    pub moves: bool,
    pub object_store: bool,
    pub tells_time: bool,
    pub cached: bool,
    pub page: usize,
    pub waits_one_in: u64,
    /// Names of machines that are backed up, kinds of files on their disks, and what is in front of them.
    pub names: u64,
    pub kinds: u64,
    pub files: u64,
    pub hole_bytes: usize,
    pub pack_bytes: u32,
    /// Clocks are wrong by so much at most, and step if `steps`.
    pub skew_ms: u64,
    pub steps: bool,
    /// Processes of a machine may not see each other.
    pub hides: bool,
    /// Of 1000 operations: refused, done without an answer, done later without an answer, not found though
    /// there, done long before the answer, done twice.
    pub refused: u64,
    pub unanswered: u64,
    pub late: u64,
    pub absent: u64,
    pub split: u64,
    pub repeated: u64,
    /// Of 1000 steps: a process is killed, stopped for hours, held for a while, time goes on for hours, a
    /// machine sleeps, a clock steps.
    pub kill: u64,
    pub stop: u64,
    pub hold: u64,
    pub jump: u64,
    pub sleep: u64,
    /// Steps of one process in a row, on average.
    pub burst: u64,
    /// Of 1000 operations on keys that begin so, so many make their process wait.
    pub slow_at: (&'static str, u64),
    /// Of 1000 recovery points, so many are published a day or two after their process had asked for it.
    pub late_points: u64,
    /// Of 1000 steps, so many damage something, so often at most.
    pub harm: u64,
    pub harms: u64,
    /// The store locks what is written.
    pub locks: bool,
    /// Of 1000 steps, so many begin a time in which nobody is given an object below one of these, though it is listed.
    pub unseen: (&'static [&'static str], u64),
}

impl Setting {
    /// A world of some kind: of many things at once, or of much of one.
    pub fn drawn(rng: &mut Rng) -> Self {
        let mut setting = Self::of_all_kinds(rng);
        let forced = super::seeds::number("PENSTOCK_SIM_WORLD");
        match forced.unwrap_or(rng.below(12)) {
            0 => setting.of_collectors(rng),
            1 => setting.of_duplicates(rng),
            2 => setting.of_clocks(rng),
            3 => setting.of_late_points(rng),
            4 => setting.of_replicas(rng),
            5 => setting.of_stories(rng),
            6 => setting.of_repairs(rng),
            7 => setting.of_damage(rng),
            _ => {}
        }
        setting
    }

    /// Several collectors at once, who are held between what they read and what they decide.
    fn of_collectors(&mut self, rng: &mut Rng) {
        self.weights = [6, 10, 5, 0, 0, 0, 0, 0];
        (self.crowd, self.processes) = (rng.between(4..=6) as usize, 40);
        // With a grace, several rounds wait at a time.
        self.grace = Duration::from_secs(*rng.pick(&[0, 0, 20, 60]));
        self.moves = rng.one_in(3);
        (self.kinds, self.names) = (rng.between(2..=3), rng.between(1..=2));
        self.slow_at = *rng.pick(&[("gc/", 300), ("leases/", 300), ("leases/", 300)]);
        (self.burst, self.jump, self.skew_ms) = (*rng.pick(&[8, 25, 60]), 0, 0);
    }

    /// Several machines that have the same, and store it at the same time.
    fn of_duplicates(&mut self, rng: &mut Rng) {
        self.weights = [8, 3, 4, 0, 0, 0, 0, 0];
        self.forget_file = 600;
        (self.crowd, self.processes) = (rng.between(3..=5) as usize, 40);
        // Most have no parent: what they have is looked up.
        (self.grace, self.names, self.files) = (Duration::ZERO, 12, rng.between(2..=3));
        (self.kinds, self.pack_bytes) = (rng.between(3..=5), *rng.pick(&[192 << 10, 256 << 10]));
        (self.moves, self.hole_bytes) = (rng.one_in(4), 0);
        (self.jump, self.skew_ms) = (0, 0);
    }

    /// Clocks that are wrong, leases that seem to be dead, writers that are held meanwhile.
    fn of_clocks(&mut self, rng: &mut Rng) {
        (self.hosts, self.skew_ms) = (3, 48 * HOUR_MS);
        (self.grace, self.crowd) = (Duration::ZERO, rng.between(3..=5) as usize);
        self.slow_at = *rng.pick(&[("points/", 300), ("points/", 300), ("leases/", 200), ("index/", 200)]);
        self.jump = *rng.pick(&[0, 4]);
    }

    /// Writers that are stopped for days just before they publish, while others collect.
    fn of_late_points(&mut self, rng: &mut Rng) {
        self.weights = [8, 8, 3, 0, 0, 0, 0, 0];
        (self.crowd, self.processes) = (rng.between(3..=4) as usize, 30);
        (self.grace, self.late_points) = (Duration::ZERO, 250);
        (self.skew_ms, self.stop, self.jump) = (0, 0, 0);
    }

    /// A story that is told again and again.
    fn of_stories(&mut self, rng: &mut Rng) {
        self.story = Some(*rng.pick(&[Story::Returns, Story::Overtaken, Story::Heir]));
        self.weights[5] = 0;
        (self.crowd, self.processes) = (rng.between(3..=6) as usize, 50);
        (self.kinds, self.pack_bytes) = (rng.between(4..=6), 256 << 10);
        (self.grace, self.moves, self.hole_bytes) = (Duration::ZERO, false, 0);
        (self.jump, self.stop, self.skew_ms, self.repos) = (0, 0, 0, 1);
        self.slow_at = *rng.pick(&[("", 0), ("leases/", 200), ("leases/", 400), ("points/", 200)]);
    }

    /// Repairs, and extensions of locks, beside everything else; nothing is damaged.
    fn of_repairs(&mut self, rng: &mut Rng) {
        (self.weights[6], self.weights[7]) = (rng.between(2..=6), rng.between(0..=3));
        self.locks = true;
    }

    /// Packs and index segments are lost or flipped, and mended now and then.
    fn of_damage(&mut self, rng: &mut Rng) {
        self.weights = [8, rng.between(1..=4), 3, 1, 1, 0, rng.between(1..=4), 0];
        (self.repos, self.cached) = (1, false);
        (self.harm, self.harms) = (*rng.pick(&[3, 10, 30]), rng.between(1..=4));
    }

    /// A store that fails over to a replica that lags.
    fn of_replicas(&mut self, rng: &mut Rng) {
        self.weights = [6, 8, 3, 1, 0, 0, 0, 0];
        (self.crowd, self.processes) = (rng.between(1..=3) as usize, 40);
        (self.grace, self.skew_ms) = (Duration::ZERO, 0);
        self.unseen = (*rng.pick(&[&["points"][..], &["gc"], &["points", "gc"]]), 10);
    }

    fn of_all_kinds(rng: &mut Rng) -> Self {
        let faulty = rng.one_in(3);
        let rate = |rng: &mut Rng, rates: &[u64]| if faulty { *rng.pick(rates) } else { 0 };
        let object_store = rng.one_in(2);
        let crowded = rng.one_in(2);
        let weights = match rng.below(6) {
            0 => [6, 6, 3, 0, 0, 0],
            1 => [6, 8, 5, 1, 0, 0],
            2 => [8, 2, 3, 0, 0, 0],
            _ => [6, 3, 3, 1, 1, 0],
        };
        let copies = rng.one_in(5);
        Self {
            hosts: rng.between(1..=3),
            repos: if copies { 2 } else { 1 },
            crowd: if crowded { rng.between(4..=6) as usize } else { rng.between(1..=3) as usize },
            processes: *rng.pick(&[12, 20, 40]),
            weights: [
                weights[0],
                weights[1],
                weights[2],
                weights[3],
                weights[4],
                if copies { 4 } else { 0 },
                0,
                0,
            ],
            story: None,
            forget_file: 0,
            twice: *rng.pick(&[0, 0, 150]),
            grace: Duration::from_millis(*rng.pick(&[0, 0, 0, 0, HOUR_MS, 24 * HOUR_MS])),
            moves: !rng.one_in(4),
            object_store,
            tells_time: rng.one_in(2),
            cached: object_store && rng.one_in(3),
            page: *rng.pick(&[usize::MAX, usize::MAX, 3, 8]),
            waits_one_in: *rng.pick(&[2, 6, 20]),
            names: rng.between(1..=3),
            kinds: *rng.pick(&[3, 5, 8, 12]),
            files: *rng.pick(&[2, 4, 6]),
            hole_bytes: if rng.one_in(12) { 4 << 20 } else { 0 },
            pack_bytes: *rng.pick(&[64 << 10, 96 << 10, 192 << 10]),
            skew_ms: *rng.pick(&[0, 0, 60_000, HOUR_MS, 48 * HOUR_MS]),
            steps: rng.one_in(4),
            hides: rng.one_in(4),
            refused: rate(rng, &[0, 0, 2, 8]),
            unanswered: rate(rng, &[0, 0, 2, 8]),
            late: rate(rng, &[0, 0, 2, 8]),
            absent: rate(rng, &[0, 10, 30, 80]),
            split: *rng.pick(&[0, 0, 20, 200]),
            repeated: rate(rng, &[0, 0, 20]),
            kill: *rng.pick(&[0, 1, 3, 10]),
            stop: *rng.pick(&[0, 0, 2, 8]),
            hold: *rng.pick(&[0, 5, 20]),
            jump: *rng.pick(&[0, 1, 4, 12]),
            sleep: *rng.pick(&[0, 0, 1]),
            burst: *rng.pick(&[1, 3, 8, 25]),
            slow_at: *rng.pick(&[
                ("", 0),
                ("", 0),
                ("gc/", 100),
                ("gc/", 300),
                ("points/", 300),
                ("index/", 100),
                ("leases/", 150),
                ("data/", 50),
            ]),
            late_points: 0,
            harm: 0,
            harms: 0,
            locks: false,
            unseen: (&[], 0),
        }
    }

    /// By how much two clocks can differ at most, and one from itself earlier.
    pub fn disagreement_ms(&self) -> u64 {
        self.skew_ms * if self.steps { 4 } else { 2 }
    }

    /// An offset of a clock.
    pub fn offset_ms(&self, rng: &mut Rng) -> i64 {
        rng.below(2 * self.skew_ms + 1) as i64 - self.skew_ms as i64
    }
}
