//! What must hold in every world, after every step. The observer looks at the store as it is; nothing that
//! it asks for waits or fails.
//!
//! 1. **Nothing is lost.** A recovery point that is listed restores byte-identically. It is excused if
//!    its writer's lease was gone when it was published: removed by another
//!    process, which took the writer for dead, or given back by a writer that failed while its request was
//!    still under way. Then the run ends with another exit code than 0,
//!    and `verify` names the point.
//! 2. **Nothing is wrong.** What a restore gives is what was backed up, whatever happens meanwhile.
//! 3. **Nothing is silent.** A backup that ends with exit code 0 has published its point.
//! 4. **Readers are let read.** A restore to which nothing happened, and that took no longer than the
//!    grace, succeeds.
//! 5. **A writer that could not renew its lease for half a day publishes nothing.**
//! 6. **The lease of a living writer is left alone** until it was not renewed for a day, by the clock of
//!    who removes it.
//! 7. **Nothing is swept before the grace is over,** by the clock of who decides.
//! 8. **Damage is no excuse.** A point may lack what was in a pack that was hurt, and what no row of the index
//!    names as long as nobody has mended that, if it is in a sound pack. After a repair, what the machines still
//!    have is stored again. Without damage a repair finds none.
//! 9. **What is said to be locked is.** All that points need is, when locks were extended.
//! 10. **In the end all garbage goes,** and nothing else: what is left is restored and verified once more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use penstock_engine::gc::{self, GcOptions};
use penstock_engine::id::ObjectId;
use penstock_engine::index::Index;
use penstock_engine::pack::{FrameReader, Location};
use penstock_engine::repo::Repository;
use penstock_engine::verify::{self, VerifyOptions};
use penstock_engine::{Error, Run, simulation};

use super::actors::{Done, Ended, back_up_again, repaired, restored};
use super::disk::Disk;
use super::faults::short;
use super::harm::Harm;
use super::setting::Setting;
use super::stage::{Change, OBSERVER, Stage};

const HOUR_MS: u64 = 3_600_000;
const TRUSTED_MS: u64 = 12 * HOUR_MS;
const DEAD_AFTER_MS: u64 = 24 * HOUR_MS;

type Id = [u8; 32];

/// A recovery point that is listed.
struct Point {
    process: usize,
    /// Its contents and manifests, by id. Empty as long as it could not be restored.
    needs: Vec<Id>,
    excused: bool,
    /// Why it cannot be restored.
    hollow: Option<String>,
    /// It is for damage of the store.
    harmed: bool,
}

/// A lease: whose, and what the writer's clock said when it was written.
struct Leased {
    process: usize,
    asked_ms: u64,
    renewed_ms: u64,
    /// And when it came to the store.
    put_ms: u64,
}

/// What is known of one repository.
#[derive(Default)]
struct Known {
    points: BTreeMap<String, Point>,
    /// Points that were listed once, and are no more.
    forgotten: BTreeSet<String>,
    leases: BTreeMap<String, Leased>,
    /// Frames that were read, and found to hold what they should.
    sound: HashSet<(ObjectId, u32)>,
    /// What contents are, by id.
    raw: HashMap<Id, blake3::Hash>,
    look: bool,
    harm: Harm,
}

/// Why a point cannot be restored.
struct Hollow {
    why: String,
    /// Damage explains it.
    harmed: bool,
}

pub struct Laws {
    stage: Arc<Stage>,
    repos: Vec<Repository>,
    known: Vec<Known>,
    grace_ms: u64,
    disagreement_ms: u64,
    steps: bool,
    tells_time: bool,
    points_seen: u64,
    frames: FrameReader,
}

impl Laws {
    pub fn new(stage: Arc<Stage>, repos: Vec<Repository>, setting: &Setting) -> Self {
        let known = repos.iter().map(|_| Known::default()).collect();
        Self {
            stage,
            repos,
            known,
            grace_ms: setting.grace.as_millis() as u64,
            disagreement_ms: setting.disagreement_ms(),
            steps: setting.steps,
            tells_time: setting.tells_time,
            points_seen: 0,
            frames: FrameReader::new().unwrap(),
        }
    }

    pub fn points_seen(&self) -> u64 {
        self.points_seen
    }

    /// Looks at what has changed.
    pub fn look(&mut self) -> Result<(), String> {
        let changes = std::mem::take(&mut self.stage.state().changes);
        if changes.is_empty() {
            return Ok(());
        }
        let running = std::mem::replace(&mut self.stage.state().running, OBSERVER);
        for change in changes {
            self.change(&change)?;
        }
        for repo in 0..self.repos.len() {
            if std::mem::take(&mut self.known[repo].look) {
                self.all_points(repo)?;
            }
        }
        self.stage.state().running = running;
        Ok(())
    }

    fn change(&mut self, change: &Change) -> Result<(), String> {
        let (folder, name) = change.key.rsplit_once('/').unwrap_or(("", &change.key));
        let folder = folder.split('/').next().unwrap_or_default();
        match (folder, change.put) {
            ("points", true) => self.born(change, name)?,
            ("points", false) => {
                let known = &mut self.known[change.repo];
                known.points.remove(name);
                known.forgotten.insert(name.to_owned());
            }
            ("leases", true) => {
                let state = self.stage.state();
                let process = &state.processes[change.process];
                let wrong_ms = state.hosts[process.host].wrong_ms;
                let leased = Leased {
                    process: change.process,
                    asked_ms: change.asked_ms,
                    renewed_ms: change.asked_ms.saturating_add_signed(wrong_ms),
                    put_ms: state.now_ms,
                };
                drop(state);
                self.known[change.repo].leases.insert(change.key.clone(), leased);
            }
            ("leases", false) => self.lease_removed(change)?,
            ("gc", true) => {
                self.decided(change, name)?;
                self.known[change.repo].look = true;
            }
            ("index", _) | ("gc" | "data" | "meta", false) => self.known[change.repo].look = true,
            _ => {}
        }
        Ok(())
    }

    /// A point is published.
    fn born(&mut self, change: &Change, id: &str) -> Result<(), String> {
        let (process, repo) = (change.process, change.repo);
        self.points_seen += 1;
        let (robbed, disk) = {
            let state = self.stage.state();
            (state.processes[process].robbed, state.processes[process].disk.clone())
        };
        let own = |leased: &&Leased| leased.process == process;
        let newest_ms = self.known[repo].leases.values().filter(own).map(|leased| leased.asked_ms).max();
        let excused = robbed || (change.late && newest_ms.is_none());
        if let Some(newest_ms) = newest_ms.filter(|_| !self.steps && !change.late)
            && change.asked_ms > newest_ms + TRUSTED_MS
        {
            let hours = (change.asked_ms - newest_ms) / HOUR_MS;
            return Err(format!("p{process} published a point {hours} hours after it had renewed its lease"));
        }
        // A copy has the id of its original.
        if let Some(disk) = disk {
            self.stage.state().contents.entry(id.to_owned()).or_insert(disk);
        }
        let mut point = Point { process, needs: Vec::new(), excused, hollow: None, harmed: false };
        if let Err(why) = self.right(repo, id) {
            point.hollow = Some(why);
            point.harmed = self.known[repo].harm.is_any();
        } else {
            point.needs = self.needs_or_harm(repo, id)?;
        }
        self.judge(repo, id, &point)?;
        let known = &mut self.known[repo];
        known.points.insert(id.to_owned(), point);
        Ok(())
    }

    fn backed_up(&self, id: &str) -> Option<Arc<Disk>> {
        self.stage.state().contents.get(id).cloned()
    }

    /// Restores a point by the program's own code, and compares.
    fn right(&self, repo: usize, id: &str) -> Result<(), String> {
        let open = &self.repos[repo];
        open.index_now().map_err(|error| error.to_string())?;
        let bytes = restored(open, id).map_err(|error| error.to_string())?;
        match self.backed_up(id) {
            Some(disk) if disk.bytes == bytes => Ok(()),
            Some(_) => Err("it restores to something else than was backed up".into()),
            None => Err("nobody has backed it up".into()),
        }
    }

    /// The ids of all manifest nodes and chunks of a point; what they are is remembered.
    fn needs(&mut self, repo: usize, id: &str) -> Result<Vec<Id>, Error> {
        let open = &self.repos[repo];
        let (index, point) = (open.index()?, open.resolve(id)?);
        let mut ids = Vec::new();
        for volume in &point.volumes {
            let mut tree = open.tree(volume.size_bytes, volume.root)?;
            for level in 0..=volume.root.level {
                for number in 0..tree.shape().nodes_at(level) {
                    let Some(node) = tree.node(level, number)? else { continue };
                    ids.push(*node.as_bytes());
                    if level == 0 {
                        let leaf = tree.load_leaf(penstock_engine::id::SegmentNo(number), Some(node))?;
                        ids.extend(
                            leaf.pieces.iter().filter_map(|piece| piece.chunk.map(|id| *id.as_bytes())),
                        );
                    }
                }
            }
        }
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            let at = index.locate_newest(id, "the observer")?;
            self.frame(repo, id, &at).map_err(|what| Error::damaged(at.pack_key(), what))?;
        }
        Ok(ids)
    }

    /// What a point needs that can be restored. Empty if some of it was hurt and is found elsewhere: then it is
    /// looked at anew with each change.
    fn needs_or_harm(&mut self, repo: usize, id: &str) -> Result<Vec<Id>, String> {
        match self.needs(repo, id) {
            Err(error) if error.is_damage() && self.known[repo].harm.is_any() => Ok(Vec::new()),
            needs => needs.map_err(|error| format!("point {id}: {error}")),
        }
    }

    /// Checks that a frame is there and holds what it held when it was seen first.
    fn frame(&mut self, repo: usize, id: &Id, at: &Location) -> Result<(), String> {
        let key = at.pack_key();
        let pack = self.stage.state().repos[repo].all.get(&key).cloned();
        let Some(pack) = pack else { return Err(format!("{} is gone", short(&key))) };
        let known = &mut self.known[repo];
        if known.sound.contains(&(at.pack.id, at.offset)) {
            return Ok(());
        }
        let stored = pack.get(at.offset as usize..at.end() as usize).ok_or("it is cut short")?;
        let mut raw = vec![0; at.raw_bytes as usize];
        let read = self.frames.read(self.repos[repo].keys(), at, id, stored, &mut raw);
        read.map_err(|error| error.to_string())?;
        let hash = blake3::hash(&raw);
        if *known.raw.entry(*id).or_insert(hash) != hash {
            return Err(format!("{} holds something else", short(&key)));
        }
        known.sound.insert((at.pack.id, at.offset));
        Ok(())
    }

    /// Asks of every point that is listed if it is whole.
    fn all_points(&mut self, repo: usize) -> Result<(), String> {
        let index = match self.repos[repo].index_now() {
            Err(error) if error.is_damage() && self.known[repo].harm.index => return Ok(()),
            index => index.map_err(|error| format!("the index cannot be read: {error}"))?,
        };
        let ids: Vec<String> = self.known[repo].points.keys().cloned().collect();
        for id in ids {
            let Some(mut point) = self.known[repo].points.remove(&id) else { continue };
            let whole = match point.needs.is_empty() {
                true => self.right(repo, &id),
                false => Ok(()),
            };
            if point.needs.is_empty() && whole.is_ok() {
                // What it lacked when it came, somebody else has stored since.
                point.needs = self.needs_or_harm(repo, &id)?;
            }
            let harmed = self.known[repo].harm.is_any();
            let whole = match whole {
                Ok(()) => self.whole(repo, &index, &point),
                Err(why) => Err(Hollow { why, harmed }), // it never was, nor is it now
            };
            let (why, harmed) = match whole {
                Ok(()) => (None, false),
                Err(Hollow { why, harmed }) => (Some(why), harmed),
            };
            point.harmed = harmed;
            let before = std::mem::replace(&mut point.hollow, why);
            let judged = if before == point.hollow { Ok(()) } else { self.judge(repo, &id, &point) };
            self.known[repo].points.insert(id, point);
            judged?;
        }
        Ok(())
    }

    fn whole(&mut self, repo: usize, index: &Index, point: &Point) -> Result<(), Hollow> {
        let mut hollow = Ok(());
        for id in &point.needs {
            let found = match index.find_row(id) {
                Ok(Some(at)) => self.frame(repo, id, &at),
                Ok(None) => Err(format!("content {}… is in no index segment", &hex::encode(id)[..8])),
                Err(error) => Err(error.to_string()),
            };
            let Err(why) = found else { continue };
            let harm = &self.known[repo].harm;
            if !harm.explains(id, &self.repos[repo]) {
                let why = match harm.is_any() {
                    true => format!("{why}; it is in {:?}", harm.sound_packs_with(id, &self.repos[repo])),
                    false => why,
                };
                return Err(Hollow { why, harmed: false });
            }
            hollow = Err(Hollow { why, harmed: true });
        }
        hollow
    }

    /// A point that cannot be restored needs an excuse.
    fn judge(&self, repo: usize, id: &str, point: &Point) -> Result<(), String> {
        let Some(why) = point.hollow.as_ref().filter(|_| !point.harmed) else { return Ok(()) };
        let name = &id[id.len() - 8..];
        let state = self.stage.state();
        let process = &state.processes[point.process];
        let (exit, killed) = (process.exit, process.killed);
        drop(state);
        let by = format!("recovery point …{name} of p{} cannot be restored: {why}", point.process);
        if !point.excused {
            return Err(by);
        }
        match exit {
            Some(true) if !killed => Err(format!("{by}; the run had ended with exit code 0")),
            Some(_) => self.named_by_verify(repo, id).map_err(|text| format!("{by}; {text}")),
            None if killed => self.named_by_verify(repo, id).map_err(|text| format!("{by}; {text}")),
            None => Ok(()),
        }
    }

    fn named_by_verify(&self, repo: usize, id: &str) -> Result<(), String> {
        let report = self.verify(repo).map_err(|error| format!("verify: {error}"))?;
        match report.hurt.iter().any(|hurt| hurt.point == id) {
            true => Ok(()),
            false => Err(format!("verify does not name it: {:?}", report.problems)),
        }
    }

    fn verify(&self, repo: usize) -> Result<verify::VerifyReport, Error> {
        self.repos[repo].index_now()?;
        let options = VerifyOptions { read_data: true, workers: 1, ..VerifyOptions::default() };
        verify::run(&self.repos[repo], &options, &Arc::new(Run::new()))
    }

    fn lease_removed(&mut self, change: &Change) -> Result<(), String> {
        let Some(leased) = self.known[change.repo].leases.remove(&change.key) else { return Ok(()) };
        if leased.process == change.process {
            return Ok(());
        }
        let mut state = self.stage.state();
        let now_ms = state.now_ms;
        let (own_host, hides) =
            (state.processes[change.process].host, state.hosts[state.processes[change.process].host].hides);
        let most_ms = now_ms.saturating_add_signed(state.hosts[own_host].wrong_most_ms);
        let owner = &mut state.processes[leased.process];
        if owner.killed || owner.exit.is_some() {
            return Ok(());
        }
        owner.robbed = true;
        let seen = owner.host == own_host && !hides;
        let old = match self.tells_time {
            true => now_ms > leased.put_ms + DEAD_AFTER_MS,
            false => most_ms > leased.renewed_ms + DEAD_AFTER_MS || self.steps,
        };
        if !state.processes[change.process].disturbed && change.process != OBSERVER && (seen || !old) {
            return Err(format!("p{} removed the lease of p{}, which lives", change.process, leased.process));
        }
        Ok(())
    }

    /// A record of collection: a decision must not come before the grace is over.
    fn decided(&self, change: &Change, name: &str) -> Result<(), String> {
        if change.process == OBSERVER {
            return Ok(());
        }
        let rounds =
            ObjectId::from_hex(name).map(|id| simulation::rounds_decided(&self.repos[change.repo], id));
        let rounds = rounds.unwrap_or_else(|| Ok(Vec::new())).map_err(|error| error.to_string())?;
        let state = self.stage.state();
        let host = &state.hosts[state.processes[change.process].host];
        let most_ms = state.now_ms.saturating_add_signed(host.wrong_most_ms);
        if rounds.iter().any(|round| most_ms < round.unix_ms() + self.grace_ms) {
            return Err(format!("p{} decided a round before its grace was over", change.process));
        }
        Ok(())
    }

    /// A process has ended.
    pub fn ended(&mut self, process: usize, what: &str, repo: usize, ended: Ended) -> Result<(), String> {
        self.look()?;
        let (killed, disturbed, started_ms, ended_ms) = {
            let state = self.stage.state();
            let p = &state.processes[process];
            (p.killed, p.disturbed, p.started_ms, p.ended_ms)
        };
        for (repo, known) in self.known.iter().enumerate() {
            for (id, point) in known.points.iter().filter(|(_, point)| point.process == process) {
                self.judge(repo, id, point)?;
            }
        }
        let is_known =
            |id: &String| self.known.iter().any(|k| k.points.contains_key(id) || k.forgotten.contains(id));
        let quick = ended_ms - started_ms + self.disagreement_ms < self.grace_ms;
        let known = &self.known[repo];
        let hollow = known.points.values().any(|point| point.hollow.is_some()) || known.harm.is_any();
        for done in &ended.done {
            match done {
                Done::Published(id) if !is_known(id) => {
                    return Err(format!("{what} says that it has published {id}, which is not there"));
                }
                Done::Restored(id, bytes) => match self.backed_up(id) {
                    Some(disk) if disk.bytes == *bytes => {}
                    _ => return Err(format!("{what} restored {id} to something else than was backed up")),
                },
                Done::NotRestored(id, error) => {
                    let listed = known.points.get(id).is_some_and(|point| point.hollow.is_none());
                    if listed && quick && !killed && !disturbed && !known.harm.is_any() {
                        return Err(format!("{what} could not restore {id}, which is whole: {error}"));
                    }
                }
                Done::Verified(problems)
                    if !problems.is_empty() && quick && !killed && !disturbed && !hollow =>
                {
                    return Err(format!("{what} found problems where there are none: {problems:?}"));
                }
                Done::Repaired(damage) if !damage.is_empty() && quick && !killed && !disturbed && !hollow => {
                    return Err(format!("{what} mended what was not damaged: {damage:?}"));
                }
                Done::Locked(points, until_ms) => self.locked(repo, points, *until_ms)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// What these points need must be locked until then.
    fn locked(&self, repo: usize, points: &[String], until_ms: u64) -> Result<(), String> {
        let index = self.repos[repo].index_now().map_err(|error| error.to_string())?;
        let listed = |id: &&String| self.known[repo].points.get(*id).is_some_and(|p| p.hollow.is_none());
        for id in points.iter().filter(listed) {
            for content in &self.known[repo].points[id].needs {
                let at = index.locate_newest(content, "the observer").map_err(|error| error.to_string())?;
                let key = at.pack_key();
                let locked_ms = self.stage.state().repos[repo].locked_ms.get(&key).copied();
                if locked_ms.is_none_or(|locked_ms| locked_ms < until_ms) {
                    return Err(format!("{}, which {id} needs, is not locked for long enough", short(&key)));
                }
            }
        }
        Ok(())
    }

    /// An object is about to be damaged.
    pub fn harm(&mut self, repo: usize, key: &str) {
        let running = std::mem::replace(&mut self.stage.state().running, OBSERVER);
        let known = &mut self.known[repo];
        known.harm.note(&self.repos[repo], key);
        let hurt = ObjectId::from_hex(key.rsplit('/').next().unwrap_or(key));
        known.sound.retain(|(pack, _)| Some(*pack) != hurt);
        known.look = true;
        self.stage.state().running = running;
    }

    /// What is damaged is mended, and what the machines still have is stored again.
    fn mend(&mut self, repo: usize) -> Result<(), String> {
        if !self.known[repo].harm.is_any() {
            return Ok(());
        }
        let mended = repaired(&self.repos[repo], true).map_err(|error| format!("repair: {error}"))?;
        self.stage.state().note(format!("the observer mends {mended:?}"));
        self.known[repo].harm.index = false;
        self.all_points(repo)?;
        let hollow: Vec<String> = {
            let points = self.known[repo].points.iter();
            points.filter(|(_, point)| point.hollow.is_some()).map(|(id, _)| id.clone()).collect()
        };
        for id in hollow {
            let Some(disk) = self.backed_up(&id) else { continue };
            let point = self.repos[repo].resolve(&id).map_err(|error| format!("point {id}: {error}"))?;
            let again = back_up_again(&self.stage, &self.repos[repo], point.name, disk.clone());
            let again = again.map_err(|error| format!("after a repair a backup fails: {error}"))?;
            self.stage.state().contents.insert(again.clone(), disk);
            self.right(repo, &again)
                .map_err(|why| format!("stored again after a repair, {again} cannot be restored: {why}"))?;
        }
        self.look()
    }

    /// All processes have ended: garbage goes, and what is left is right.
    pub fn end(&mut self) -> Result<(), String> {
        self.look()?;
        for repo in 0..self.repos.len() {
            self.stage.state().running = OBSERVER;
            self.mend(repo)?;
            let ids: Vec<String> = self.known[repo].points.keys().cloned().collect();
            let report = self.verify(repo).map_err(|error| format!("verify: {error}"))?;
            for id in &ids {
                let hollow = self.known[repo].points[id].hollow.is_some();
                let named = report.hurt.iter().any(|hurt| hurt.point == *id);
                if hollow != named {
                    return Err(format!("verify and the observer disagree on {id}: {:?}", report.problems));
                }
                if hollow {
                    self.stage.state().repos[repo].all.remove(&format!("points/{id}"));
                    self.known[repo].points.remove(id);
                } else {
                    self.right(repo, id)
                        .map_err(|why| format!("recovery point {id} cannot be restored: {why}"))?;
                }
            }
            self.sweep(repo)?;
            self.all_points(repo)?;
            let report = self.verify(repo).map_err(|error| format!("verify: {error}"))?;
            if !report.is_clean() {
                return Err(format!("in the end there are problems: {:?}", report.problems));
            }
        }
        self.look()
    }

    fn sweep(&mut self, repo: usize) -> Result<(), String> {
        let options = GcOptions { grace: Duration::ZERO, ..GcOptions::default() };
        let collect = |options: &GcOptions| {
            let run = Arc::new(Run::new());
            gc::run(&self.repos[repo], options, &run).map_err(|error| format!("in the end gc fails: {error}"))
        };
        let mut left = String::new();
        for _ in 0..6 {
            self.stage.state().now_ms += 5 * DEAD_AFTER_MS;
            collect(&options)?;
            let seen = collect(&GcOptions { dry_run: true, ..options.clone() })?;
            if seen.condemned.packs + seen.candidates.packs + seen.waiting.len() as u64 == 0 {
                return Ok(());
            }
            left = format!("{seen:?}");
        }
        Err(format!("in the end garbage is left: {left}"))
    }
}
