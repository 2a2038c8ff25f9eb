//! Sizes of a repository: logical, unique, stored, by name.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::format::header::ObjectKind;
use crate::repo::{Listed, Repository};

/// Sizes of one name's recovery points.
#[derive(Clone, Debug, Default)]
pub struct NameStats {
    /// The name.
    pub name: String,
    /// Its recovery points.
    pub points: u64,
    /// Sum of their volumes' sizes.
    pub logical_bytes: u64,
    /// The same without zeros.
    pub data_bytes: u64,
    /// What its backups stored when they were made.
    pub stored_bytes: u64,
}

/// Sizes of a repository.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Readable recovery points.
    pub points: u64,
    /// Sum of their volumes' sizes.
    pub logical_bytes: u64,
    /// The same without zeros.
    pub data_bytes: u64,
    /// Distinct chunks, before compression.
    pub unique_bytes: u64,
    /// Distinct chunks, as stored.
    pub stored_bytes: u64,
    /// Data packs that the index knows.
    pub data_packs: u64,
    /// Metadata packs that the index knows.
    pub meta_packs: u64,
    /// Their bytes.
    pub meta_bytes: u64,
    /// Index segments.
    pub index_segments: u64,
    /// Their bytes.
    pub index_bytes: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// By name, in order.
    pub names: Vec<NameStats>,
}

impl Stats {
    /// How often a stored byte is used: data over unique.
    pub fn dedup_ratio(&self) -> f64 {
        ratio(self.data_bytes, self.unique_bytes)
    }

    /// Unique over stored.
    pub fn compression_ratio(&self) -> f64 {
        ratio(self.unique_bytes, self.stored_bytes)
    }
}

fn ratio(above: u64, below: u64) -> f64 {
    if below == 0 { 1.0 } else { above as f64 / below as f64 }
}

/// Collects the sizes: reads all recovery points and the whole index.
pub fn collect(repo: &Repository) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut names: BTreeMap<String, NameStats> = BTreeMap::new();
    for listed in repo.points()? {
        let Listed::Point(point) = listed else { continue };
        let entry = names
            .entry(point.name.clone())
            .or_insert_with(|| NameStats { name: point.name.clone(), ..NameStats::default() });
        entry.points += 1;
        for volume in &point.volumes {
            entry.logical_bytes += volume.size_bytes;
            entry.data_bytes += volume.size_bytes.saturating_sub(volume.counts.zero_bytes);
            entry.stored_bytes += volume.counts.stored_bytes;
        }
    }
    stats.names = names.into_values().collect();
    for name in &stats.names {
        stats.points += name.points;
        stats.logical_bytes += name.logical_bytes;
        stats.data_bytes += name.data_bytes;
    }
    let index = repo.index()?;
    let segments = index.segments();
    stats.index_segments = segments.len() as u64;
    stats.index_bytes = segments.iter().map(|s| s.bytes()).sum();
    for pack in index.packs() {
        match pack.kind {
            ObjectKind::Meta => {
                stats.meta_packs += 1;
                stats.meta_bytes += u64::from(pack.bytes);
            }
            _ => stats.data_packs += 1,
        }
    }
    index.each_row(&mut |_, at| {
        if at.pack.kind == ObjectKind::Data {
            stats.chunks += 1;
            stats.unique_bytes += u64::from(at.raw_bytes);
            stats.stored_bytes += u64::from(at.stored_bytes);
        }
        Ok(())
    })?;
    Ok(stats)
}
