//! Packs that were put aside as damaged stay condemned as long as a recovery point needs what is only in them.

use super::Pass;
use super::packs::{Present, Uses};
use crate::error::{Error, Result};
use crate::format::collection::{Condemned, Pack, Stage, stage_name};
use crate::format::header::ObjectKind;
use crate::gc_state::{GcState, Round, put_json};
use crate::id::ObjectId;
use crate::store::PutOutcome;

impl Pass<'_> {
    /// Takes out of `decidable` the rounds of packs that were put aside of which points need all. Where they need
    /// some, those get into a round of their own first, so that the old one can be decided on.
    pub(super) fn keep_aside(
        &mut self,
        state: &GcState,
        decidable: &mut Vec<&Round>,
        uses: &Uses,
        present: &Present,
    ) -> Result<()> {
        let mut staying: Vec<Pack> = Vec::new();
        decidable.retain(|round| {
            let needed = |pack: &&Pack| uses.is_needed(&pack.id);
            let needed: Vec<Pack> = match round.condemned.damaged {
                true => round.condemned.packs.iter().filter(needed).copied().collect(),
                false => Vec::new(),
            };
            needed.iter().for_each(|pack| self.report.aside.add(present.bytes_of(&pack.id)));
            if needed.is_empty() {
                return true;
            }
            let all = needed.len() == round.condemned.packs.len();
            staying.extend(needed.into_iter().filter(|_| !all));
            !all
        });
        if staying.is_empty() || self.lease.is_none() {
            return Ok(());
        }
        let name = stage_name(ObjectId::at(self.now_ms())?, Stage::Condemned);
        let record = Condemned {
            id: name.to_string(),
            packs: staying,
            knows: state.known(),
            damaged: true,
            ..Condemned::default()
        };
        self.stop()?;
        fail::fail_point!("gc-before-aside");
        let (store, keys) = (self.repo.store().as_ref(), self.repo.keys());
        if put_json(store, keys, ObjectKind::Collection, name, &record)? == PutOutcome::Exists {
            let object = ObjectKind::Collection.key(&name.to_string());
            return Err(Error::damaged(object, "a name just drawn was taken already"));
        }
        // After the record can be seen, as with any other.
        let writers = self.writers()?;
        self.fence(name, &writers)?;
        Ok(())
    }
}
