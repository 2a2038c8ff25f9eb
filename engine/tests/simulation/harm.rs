//! Damage: packs and index segments that are lost, or of which a byte flips, without anybody's doing.

use std::collections::BTreeSet;

use penstock_engine::format::header::ObjectKind;
use penstock_engine::id::ObjectId;
use penstock_engine::pack::read_contents;
use penstock_engine::repo::Repository;

use super::faults::short;
use super::world::World;

/// What is damaged of a repository.
#[derive(Default)]
pub struct Harm {
    /// Contents of which a pack was hurt: they may be nowhere else.
    contents: BTreeSet<[u8; 32]>,
    packs: BTreeSet<ObjectId>,
    /// Index segments were hurt, and nobody is known to have mended that.
    pub index: bool,
}

impl Harm {
    /// True if something was hurt.
    pub fn is_any(&self) -> bool {
        self.index || !self.packs.is_empty()
    }

    /// True if it may be for this that a content cannot be read. If only its row is lost, it is in a sound pack
    /// still.
    pub fn explains(&self, id: &[u8; 32], repo: &Repository) -> bool {
        self.contents.contains(id) || (self.index && !self.sound_packs_with(id, repo).is_empty())
    }

    /// Names of packs that were never hurt and have a content.
    pub fn sound_packs_with(&self, id: &[u8; 32], repo: &Repository) -> Vec<String> {
        let mut packs = Vec::new();
        for kind in [ObjectKind::Data, ObjectKind::Meta] {
            let each = &mut |key: &str, _| {
                let id = ObjectId::from_hex(key.rsplit('/').next().unwrap_or(key));
                packs.extend(id.map(|id| (kind, id)));
            };
            repo.store().list(kind.prefix(), each).unwrap();
        }
        packs.retain(|(_, pack)| !self.packs.contains(pack));
        packs.retain(|(kind, pack)| ids_in(repo, *kind, *pack).contains(id));
        packs.iter().map(|(kind, pack)| short(&kind.key(&pack.to_string()))).collect()
    }

    /// What is to be known of an object before it is hurt.
    pub fn note(&mut self, repo: &Repository, key: &str) {
        let (folder, name) = (key.split('/').next().unwrap_or_default(), key.rsplit('/').next());
        let kind = match folder {
            "index" => {
                self.index = true;
                return;
            }
            "meta" => ObjectKind::Meta,
            _ => ObjectKind::Data,
        };
        let pack = name.and_then(ObjectId::from_hex).unwrap();
        if self.packs.insert(pack) {
            self.contents.extend(ids_in(repo, kind, pack));
        }
    }
}

fn ids_in(repo: &Repository, kind: ObjectKind, pack: ObjectId) -> Vec<[u8; 32]> {
    let (_, rows) = read_contents(repo.store().as_ref(), repo.keys(), kind, pack).unwrap();
    rows.iter().map(|row| row.id).collect()
}

impl World<'_> {
    /// Perhaps something is damaged.
    pub fn harm_something(&mut self) {
        if self.setting.harms == 0 || !self.rng.chance(self.setting.harm) {
            return;
        }
        let folder = *self.rng.pick(&["data/", "data/", "meta/", "index/"]);
        let keys: Vec<String> = {
            let state = self.stage.state();
            let of_folder = state.repos[0].all.keys().filter(|key| key.starts_with(folder));
            of_folder.cloned().collect()
        };
        if keys.is_empty() {
            return;
        }
        let key = self.rng.pick(&keys).clone();
        self.setting.harms -= 1;
        self.laws.harm(0, &key);
        let mut state = self.stage.state();
        if self.rng.one_in(2) {
            state.repos[0].all.remove(&key);
            state.note(format!("{} is lost", short(&key)));
        } else {
            let object = state.repos[0].all.get_mut(&key).unwrap();
            let mut bytes = object.to_vec();
            let at = self.rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.rng.below(8);
            *object = bytes.into();
            state.note(format!("a bit of {} flips, in byte {at}", short(&key)));
        }
    }
}
