//! One backup of one machine: snapshots are taken, each volume's way is chosen, sources are handed to the engine, and afterwards everything is taken away
//! but the anchors. Whatever is made is in the journal and has the run's tags.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use penstock_engine::backup::{Parent, VolumeSource};
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::Repository;
use serde_json::{Value, json};

use super::anchor::{self, Anchors};
use super::chosen::{Exclude, Excluded};
use super::look::{Look, Mode};
use super::part::{Part, PartReport, Preparation, Reading};
use super::shots::{self, Shots};
use super::{Error, Result};
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::Machine;
use crate::aws::snapshots;
use crate::aws::tags::{self, Tags};
use crate::ec2run::ledger::Ledger;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// `None`: by platform.
    pub mode: Option<Mode>,
    /// How volumes are read.
    pub reading: Reading,
    /// Volumes left out.
    pub exclude: Exclude,
    /// Keep a snapshot of each volume for the next backup.
    pub anchor: bool,
}

/// A backup under way.
pub struct Job {
    aws: Arc<Clients>,
    keep_anchors: bool,
    repository: String,
    look: Look,
    configuration: Value,
    anchors: Anchors,
    ledger: Ledger,
    shots: Shots,
    parts: Vec<Part>,
    notes: Vec<String>,
}

impl Job {
    /// Takes snapshots and makes everything ready to read. What was made is taken away again if that fails.
    pub fn begin(
        aws: Arc<Clients>,
        proxy: Option<&Proxy>,
        order: &Order,
        machine: Machine,
        repo: &Repository,
        state_dir: &Path,
    ) -> Result<Self> {
        let repository = repo.config().repository_id.clone();
        let (look, configuration, all) = aws.block_on(async {
            let look = Look::at(&aws, machine, &order.exclude, order.mode).await?;
            let configuration = look.configuration(&aws).await?;
            let all = anchor::list(&aws, &repository, &look.volumes()).await?;
            Ok::<_, Error>((look, configuration, all))
        })?;
        // Not in there: a repository far away waits on the same runtime.
        let anchors = Anchors::choose(repo, all)?;
        let ledger = Ledger::begin(&aws, &look.machine.id, state_dir)?;
        match aws.block_on(prepare(&aws, proxy, order, &look, &ledger, &anchors)) {
            Ok((shots, parts, more_notes)) => {
                let notes = look.notes.iter().cloned().chain(more_notes).collect();
                Ok(Self {
                    aws,
                    keep_anchors: order.anchor,
                    repository,
                    look,
                    configuration,
                    anchors,
                    ledger,
                    shots,
                    parts,
                    notes,
                })
            }
            Err(error) => Err(aws.block_on(ledger.undo_after(&aws, error))),
        }
    }

    /// The sources for the engine, in the order of the machine's devices.
    pub fn sources(&self) -> Result<Vec<VolumeSource>> {
        self.parts.iter().map(|part| part.source(&self.aws)).collect()
    }

    /// What the new recovery point is compared with.
    pub fn parent(&self) -> Parent {
        match &self.anchors.point {
            Some(point) => Parent::Point(point.id.clone()),
            None => Parent::Latest,
        }
    }

    /// The member `instance` of the recovery point.
    pub fn instance(&self) -> Value {
        let mut instance = self.configuration.clone();
        instance["mode"] = json!(self.look.mode);
        instance["excluded"] = json!(self.look.excluded);
        instance["devices"] = self.parts.iter().map(Part::recorded).collect();
        if let Some(image) = &self.shots.image {
            instance["kept_image"] = json!(image.id);
        }
        instance
    }

    /// What the report says of the volumes.
    pub fn report(&self) -> Vec<PartReport> {
        self.parts.iter().map(Part::report).collect()
    }

    /// Volumes left out.
    pub fn excluded(&self) -> &[Excluded] {
        &self.look.excluded
    }

    /// How it was done.
    pub fn mode(&self) -> Mode {
        self.look.mode
    }

    /// The recovery point is published: anchors are kept, everything else goes. Failures are notes: the backup itself is done, and a sweep finds the rest.
    pub fn keep(mut self, point: &RecoveryPoint) -> Vec<String> {
        let aws = self.aws.clone();
        let cleaning = aws.retry.clean_up();
        // Each step is tried whatever became of the others: what can go away, goes.
        let outcomes = aws.block_on(async {
            [
                self.keep_anchors(point).await,
                self.remove_superseded().await,
                self.ledger.remove_made(&aws).await,
            ]
        });
        drop(cleaning);
        let mut notes = std::mem::take(&mut self.notes);
        let failed: Vec<String> =
            outcomes.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
        if failed.is_empty() {
            self.ledger.end();
        } else {
            let why = failed.join("; ");
            notes.push(format!(
                "not everything temporary could be taken away, `penstock ec2 sweep` tries again: {why}"
            ));
        }
        notes
    }

    async fn keep_anchors(&self, point: &RecoveryPoint) -> Result<()> {
        let mut kept: Vec<(String, Tags)> = Vec::new();
        let tags_of = |purpose: &str| {
            Tags::from([
                (tags::PURPOSE.to_owned(), purpose.to_owned()),
                (tags::POINT.to_owned(), point.id.clone()),
                (tags::REPOSITORY.to_owned(), self.repository.clone()),
                (tags::INSTANCE.to_owned(), self.look.machine.id.clone()),
            ])
        };
        if let Some(image) = &self.shots.image {
            kept.push((image.id.clone(), tags_of(tags::KEPT)));
        }
        for part in &self.parts {
            let of_image = self.shots.is_of_image(&part.snapshot.id);
            if of_image || self.keep_anchors {
                let mut tags = tags_of(if of_image { tags::KEPT } else { tags::ANCHOR });
                tags.insert(tags::VOLUME.into(), part.volume.facts.id.clone());
                kept.push((part.snapshot.id.clone(), tags));
            }
        }
        for (id, tags) in kept {
            snapshots::retag(&self.aws, &[&id], &tags, &[tags::EXPIRES]).await?;
            self.ledger.settled(&id)?;
        }
        Ok(())
    }

    /// Anchors of earlier backups of these volumes.
    async fn remove_superseded(&self) -> Result<()> {
        for old in &self.anchors.all {
            if old.tags.get(tags::PURPOSE).is_some_and(|purpose| purpose == tags::ANCHOR) {
                snapshots::delete(&self.aws, &old.id).await?;
            }
        }
        Ok(())
    }

    /// Takes away everything that was made: there is no recovery point.
    pub fn undo(self, error: Error) -> Error {
        let aws = self.aws.clone();
        aws.block_on(self.ledger.undo_after(&aws, error))
    }
}

/// Takes the snapshots and makes all volumes ready at the same time.
async fn prepare(
    aws: &Arc<Clients>,
    proxy: Option<&Proxy>,
    order: &Order,
    look: &Look,
    ledger: &Ledger,
    anchors: &Anchors,
) -> Result<(Shots, Vec<Part>, Vec<String>)> {
    let shots = shots::take(aws, ledger, look, "backup").await?;
    let preparation =
        Preparation { aws, proxy, reading: &order.reading, ledger, anchors, notes: Mutex::default() };
    let mut parts = Vec::new();
    for chosen in &look.chosen {
        let snapshot = shots.of(look, &chosen.facts.id)?.clone();
        parts.push(preparation.part(chosen.clone(), snapshot));
    }
    // All of them end before the first failure is told: what they make must be known.
    let parts = join_all(parts).await.into_iter().collect::<Result<Vec<Part>>>()?;
    let notes = preparation.notes.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((shots, parts, notes))
}
