//! Stories with a power cut in them: commands that run on a disk until it stops, what they promised until then, and
//! whether the medium keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Disk, Flaw, Odds, Powered};
use crate::penstock::{Output, Penstock, code};
use crate::repo::{Access, Repo};
use crate::rng::Rng;
use crate::workdir::{Workdir, remove_if_there, text};
use crate::{compare, json};

/// Chance, in percent, that the power goes only after the last command has ended well.
const AFTER_THE_END: u64 = 25;
/// Chance, in percent, that a command is killed, without a power cut, and run again before the power goes.
const KILLED_BEFORE: u64 = 30;

/// What the stories of a test begin with: sources outside of the disk, and the disk as it was when all was well.
pub struct Scene {
    /// Where sources, the key and restored volumes are.
    pub work: Workdir,
    /// Sources, in the order of their numbers.
    pub images: Vec<PathBuf>,
    disk: Disk,
    books: Books,
    key: PathBuf,
}

/// A mounted disk with the places on it.
pub struct Place<'a> {
    scene: &'a Scene,
    powered: Powered,
}

/// Which of two repositories on the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Which {
    /// The one that is backed up to.
    First,
    /// The one that is copied to.
    Second,
}

/// What a command promises with exit code 0.
#[derive(Clone, Debug)]
pub enum Effect {
    /// There is a repository.
    Makes,
    /// There is a point, named so, that holds the image of this number.
    Publishes(&'static str, usize),
    /// These points are gone.
    Forgets(Vec<String>),
    /// The second repository has all points of the first.
    Copies,
    /// This file holds the image of this number.
    Restores(&'static str, usize),
    /// Nothing is different.
    Collects,
}

/// Makes a command; `true` if it goes on after a cut or a kill. `None` if then nothing is left to do.
type Command = Box<dyn Fn(&Place<'_>, bool) -> Option<Penstock> + Send + Sync>;

/// A command of a story.
pub struct Act {
    command: Command,
    effect: Effect,
}

impl Act {
    /// A command and what it promises.
    pub fn new(
        effect: Effect,
        command: impl Fn(&Place<'_>, bool) -> Option<Penstock> + Send + Sync + 'static,
    ) -> Self {
        Self { command: Box::new(command), effect }
    }

    /// `backup` of an image.
    pub fn backup(name: &'static str, image: usize) -> Self {
        Self::new(Effect::Publishes(name, image), move |place, _| {
            Some(place.repo(Which::First).backup_command(&place.scene.images[image], name, &[]))
        })
    }

    /// `gc --grace 0s`.
    pub fn gc() -> Self {
        Self::new(Effect::Collects, |place, _| {
            Some(place.repo(Which::First).command(&["gc", "--grace", "0s", "--json"]))
        })
    }

    /// `forget` of points, of which a second try names those that are still there.
    pub fn forget(points: Vec<String>) -> Self {
        Self::new(Effect::Forgets(points.clone()), move |place, again| {
            let repo = place.repo(Which::First);
            let listed = if again { repo.point_ids() } else { points.clone() };
            let left: Vec<&String> = points.iter().filter(|point| listed.contains(point)).collect();
            (!left.is_empty()).then(|| repo.command(&["forget"]).args(left))
        })
    }
}

/// What has been promised so far.
#[derive(Clone, Default, Debug)]
struct Books {
    /// Repositories that are there.
    there: BTreeSet<Which>,
    /// Points that must be there, with their images.
    held: BTreeMap<(Which, String), usize>,
    /// Points that must not be there, with the images they held.
    gone: BTreeMap<(Which, String), usize>,
    /// Points that may be there.
    perhaps: BTreeMap<(Which, String), usize>,
    /// Images of points by their names, where the command that makes them did not come to its end.
    begun: BTreeMap<String, usize>,
    /// Files that must hold an image.
    restored: BTreeMap<&'static str, usize>,
}

impl Books {
    fn begins(&mut self, effect: &Effect) {
        match effect {
            Effect::Publishes(name, image) => {
                self.begun.insert((*name).to_owned(), *image);
            }
            Effect::Forgets(points) => {
                for point in points {
                    let point = (Which::First, point.clone());
                    if let Some(image) = self.held.remove(&point) {
                        self.perhaps.insert(point, image);
                    }
                }
            }
            Effect::Copies => {
                let of_first: Vec<_> =
                    self.held.iter().filter(|((repo, _), _)| *repo == Which::First).collect();
                let copies: Vec<_> = of_first
                    .into_iter()
                    .map(|((_, id), image)| ((Which::Second, id.clone()), *image))
                    .collect();
                self.perhaps.extend(copies);
            }
            Effect::Restores(file, _) => {
                self.restored.remove(file);
            }
            Effect::Makes | Effect::Collects => {}
        }
    }

    /// The command ended with exit code 0; `output` is `None` where nothing was left to do.
    fn promises(&mut self, effect: &Effect, output: Option<&Output>) {
        match effect {
            Effect::Makes => {
                self.there.insert(Which::First);
            }
            Effect::Publishes(_, image) => {
                let Some(output) = output else { return };
                let id = json::text(&output.json(), "recovery_point").to_owned();
                self.held.insert((Which::First, id), *image);
            }
            Effect::Forgets(points) => {
                for point in points {
                    let point = (Which::First, point.clone());
                    if let Some(image) = self.perhaps.remove(&point) {
                        self.gone.insert(point, image);
                    }
                }
            }
            Effect::Copies => {
                let copies: Vec<_> =
                    self.held.iter().filter(|((repo, _), _)| *repo == Which::First).collect();
                let copies: Vec<_> = copies
                    .into_iter()
                    .map(|((_, id), image)| ((Which::Second, id.clone()), *image))
                    .collect();
                self.held.extend(copies);
            }
            Effect::Restores(file, image) => {
                self.restored.insert(file, *image);
            }
            Effect::Collects => {}
        }
    }
}

/// What was found wrong after a cut; empty if nothing.
pub type Judgement = Vec<String>;

/// How a story went on until the power was cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// While the command of this number ran.
    During(usize),
    /// After all had ended well.
    AfterAll,
}

/// A story: commands on a disk.
pub struct Story {
    /// The commands, in their order.
    pub acts: Vec<Act>,
}

impl<'a> Place<'a> {
    fn mount(scene: &'a Scene, disk: Disk, stop_at: Option<u64>) -> Self {
        Self { scene, powered: Powered::mount(disk, &scene.work.join("disk"), stop_at) }
    }

    /// A path on the disk.
    pub fn join(&self, name: &str) -> PathBuf {
        self.powered.dir().join(name)
    }

    /// The image of this number.
    pub fn image(&self, number: usize) -> &Path {
        &self.scene.images[number]
    }

    /// A repository on the disk; its state directory is there too.
    pub fn repo(&self, which: Which) -> Repo {
        let name = match which {
            Which::First => "first",
            Which::Second => "second",
        };
        Repo::at(&self.join(name), &self.join("state"), Access::KeyFile(self.scene.key.clone()))
    }

    /// Runs a command until it ends or everything stops; then it is killed.
    fn run(&self, command: Penstock) -> Output {
        let mut running = command.spawn();
        while !running.ended() {
            if self.powered.wait_stopped(std::time::Duration::from_millis(2)) {
                running.kill();
                break;
            }
        }
        running.wait()
    }

    /// Everything that was promised, looked at.
    fn judge(&self, books: &Books, all: bool) -> Judgement {
        let mut wrong = Vec::new();
        for which in [Which::First, Which::Second] {
            self.judge_repo(which, books, all, &mut wrong);
        }
        for (file, image) in &books.restored {
            if let Some(difference) = differs(self.image(*image), &self.join(file)) {
                wrong.push(format!("restored with exit code 0, but {file}: {difference}"));
            }
        }
        wrong
    }

    fn judge_repo(&self, which: Which, books: &Books, all: bool, wrong: &mut Judgement) {
        let repo = self.repo(which);
        if !books.there.contains(&which) && !repo.dir.join("config").exists() {
            return;
        }
        let list = repo.command(&["list", "--json"]).run();
        if list.code != code::DONE {
            wrong.push(format!("{which:?}: {}", list.show()));
            return;
        }
        let listed = list.json();
        let listed: BTreeMap<String, String> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|point| (json::text(point, "id").to_owned(), json::text(point, "name").to_owned()))
            .collect();
        for ((repo, id), image) in &books.held {
            if *repo == which && !listed.contains_key(id) {
                wrong.push(format!("{which:?}: point {id} (image {image}) was reported as done and is lost"));
            }
        }
        for (id, name) in &listed {
            let key = (which, id.clone());
            if books.gone.contains_key(&key) {
                wrong.push(format!(
                    "{which:?}: point {id} ({name}) was forgotten with exit code 0 and is back"
                ));
            }
            let known =
                [&books.held, &books.perhaps, &books.gone].into_iter().find_map(|points| points.get(&key));
            let Some(image) = known.or_else(|| books.begun.get(name)) else {
                wrong.push(format!("{which:?}: nobody made point {id} ({name})"));
                continue;
            };
            if all || known.is_none() {
                self.judge_point(&repo, id, *image, wrong);
            }
        }
        let verify = repo.command(&["verify", "--read-data", "--json"]).run();
        if verify.code != code::DONE {
            wrong.push(format!("{which:?}: {}", verify.show()));
        }
    }

    fn judge_point(&self, repo: &Repo, id: &str, image: usize, wrong: &mut Judgement) {
        let target = self.scene.work.join("restored.img");
        remove_if_there(&target);
        // its journal belongs beside the target, its state not on the disk
        let repo = repo.elsewhere(&self.scene.work, "judge.state");
        let restore = repo.restore_command(id, &target, &[]).run();
        if restore.code != code::DONE {
            wrong.push(format!("point {id} (image {image}) is listed and hollow: {}", restore.show()));
        } else if let Some(difference) = differs(self.image(image), &target) {
            wrong.push(format!("point {id} (image {image}) restores with exit code 0, but {difference}"));
        }
        remove_if_there(&target);
    }
}

impl Scene {
    /// Prepares a disk: a directory for restores, then what `acts` do, then both repositories unless `empty`.
    pub fn new(work: Workdir, images: Vec<PathBuf>, empty: bool, acts: &[Act]) -> Self {
        let key = work.join("key");
        std::fs::write(&key, [7; 64]).unwrap();
        let mut scene = Self { work, images, disk: Disk::default(), books: Books::default(), key };
        let place = Place::mount(&scene, Disk::default(), None);
        std::fs::create_dir(place.join("state")).unwrap();
        std::fs::create_dir(place.join("out")).unwrap();
        let mut books = Books::default();
        if !empty {
            for which in [Which::First, Which::Second] {
                place.repo(which).command(&["init", "--pack-size", "8MiB"]).run().ok();
                books.there.insert(which);
            }
        }
        for act in acts {
            let Some(command) = (act.command)(&place, false) else { continue };
            let output = place.run(command).ok();
            books.begins(&act.effect);
            books.promises(&act.effect, Some(&output));
        }
        let disk = place.powered.settle();
        (scene.disk, scene.books) = (disk, books);
        scene
    }

    /// Points of the first repository, oldest first.
    pub fn points(&self) -> Vec<String> {
        self.books.held.keys().filter(|(repo, _)| *repo == Which::First).map(|(_, id)| id.clone()).collect()
    }

    /// Puts a copy of an image on the disk.
    pub fn put(&mut self, name: &str, image: &Path) {
        let disk = {
            let place = Place::mount(self, self.disk.clone(), None);
            std::fs::copy(image, place.join(name)).unwrap();
            place.powered.settle()
        };
        self.disk = disk;
    }

    /// Plays the story without a cut; returns its write-like requests. Everything must be as promised.
    pub fn rehearse(&self, story: &Story) -> u64 {
        let place = Place::mount(self, self.disk.clone(), None);
        let mut books = self.books.clone();
        for act in &story.acts {
            let Some(command) = (act.command)(&place, false) else { continue };
            books.begins(&act.effect);
            let output = place.run(command).ok();
            books.promises(&act.effect, Some(&output));
        }
        let requests = place.powered.requests();
        let wrong = place.judge(&books, true);
        assert!(wrong.is_empty(), "without a power cut: {wrong:#?}");
        requests
    }

    /// Plays the story with a cut drawn from `seed`, within its `requests`; tells what was wrong.
    pub fn play(&self, story: &Story, requests: u64, seed: u64) -> Judgement {
        let mut rng = Rng::new(seed);
        let cut_at = (!rng.percent(AFTER_THE_END)).then(|| rng.in_range(1..requests + 1));
        let killed_at = rng.percent(KILLED_BEFORE).then(|| rng.in_range(1..requests + 1));
        let odds = Odds::drawn(&mut rng);
        let (fate, disk, mut books) = self.until_cut(story, Flaw::None, killed_at, cut_at, odds, &mut rng);
        let told = |stage: &str, wrong: Judgement| -> Judgement {
            let how = format!(
                "seed {seed}: cut at {cut_at:?} of {requests}, killed at {killed_at:?}, {odds:?}, {fate:?}"
            );
            wrong.into_iter().map(|line| format!("{how}, {stage}: {line}")).collect()
        };

        let place = Place::mount(self, disk, None);
        let wrong = place.judge(&books, true);
        if !wrong.is_empty() {
            return told("after the cut", wrong);
        }
        let left = match fate {
            Fate::During(act) => &story.acts[act..],
            Fate::AfterAll => &[],
        };
        for (number, act) in left.iter().enumerate() {
            let command = (act.command)(&place, number == 0);
            books.begins(&act.effect);
            let output = command.map(|command| place.run(command));
            if let Some(output) = output.as_ref().filter(|output| output.code != code::DONE) {
                return told("going on", vec![output.show()]);
            }
            books.promises(&act.effect, output.as_ref());
        }
        let wrong = place.judge(&books, false);
        if !wrong.is_empty() {
            return told("after going on", wrong);
        }
        let disk = place.powered.cut(&mut rng, Odds::NOTHING_STAYS);
        let place = Place::mount(self, disk, None);
        told("after going on and a second cut", place.judge(&books, true))
    }

    /// Plays the story to its end on a disk with a flaw, and cuts the power then; tells what was wrong.
    pub fn play_flawed(&self, story: &Story, flaw: Flaw, odds: Odds) -> Judgement {
        let mut rng = Rng::new(1);
        let (_, disk, books) = self.until_cut(story, flaw, None, None, odds, &mut rng);
        Place::mount(self, disk, None).judge(&books, true)
    }

    fn until_cut(
        &self,
        story: &Story,
        flaw: Flaw,
        killed_at: Option<u64>,
        cut_at: Option<u64>,
        odds: Odds,
        rng: &mut Rng,
    ) -> (Fate, Disk, Books) {
        let mut disk = self.disk.clone();
        disk.flaw = flaw;
        let place = Place::mount(self, disk, killed_at.or(cut_at));
        let mut books = self.books.clone();
        let (mut number, mut again, mut may_be_killed) = (0, false, killed_at.is_some());
        let fate = loop {
            let Some(act) = story.acts.get(number) else { break Fate::AfterAll };
            let command = (act.command)(&place, again);
            books.begins(&act.effect);
            let output = command.map(|command| place.run(command));
            // whoever says that all is well is taken at his word, even if the power has gone meanwhile
            again = output.as_ref().is_some_and(|output| output.code != code::DONE);
            if !again {
                books.promises(&act.effect, output.as_ref());
                number += 1;
            }
            let stopped = place.powered.is_stopped();
            if stopped && may_be_killed {
                may_be_killed = false;
                place.powered.go_on(cut_at.map(|requests| place.powered.requests() + requests));
            } else if stopped {
                break if number < story.acts.len() { Fate::During(number) } else { Fate::AfterAll };
            } else if let Some(output) = output.filter(|output| output.code != code::DONE) {
                panic!("without a cut: {}", output.show());
            }
        };
        (fate, place.powered.cut(rng, odds), books)
    }
}

/// How a file differs from what is expected; `None` if it does not.
fn differs(expected: &Path, found: &Path) -> Option<String> {
    if !found.exists() {
        return Some(format!("{} is not there", text(found)));
    }
    let (a, b) = (compare::size_bytes(expected), compare::size_bytes(found));
    if a != b {
        return Some(format!("{} has {b} bytes instead of {a}", text(found)));
    }
    let (a, b) = (std::fs::read(expected).unwrap(), std::fs::read(found).unwrap());
    let at = a.iter().zip(&b).position(|(a, b)| a != b)?;
    let bytes = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    Some(format!("{bytes} bytes differ, the first at {at}"))
}
