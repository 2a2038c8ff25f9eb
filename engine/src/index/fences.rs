//! Where each page of a segment begins, in two bytes a page: ids are uniform, so a page is nearly where a straight line puts it.

/// Fewer pages than this are kept as they are.
const LINE_PAGES_MIN: usize = 512;
/// Steps of a page's mean width in which the distance from the line is counted.
const STEPS: u64 = 256;
/// Pages by which a fence may be off the line: what an `i16` of steps can say.
const OFF_MAX: usize = 128;

/// The fences of a segment. Compressed ones are rounded down, so that now and then two pages are named where one holds the id.
pub enum Fences {
    /// As stored.
    Exact(Vec<u64>),
    /// Distance of each from a line.
    Line {
        /// The first fence.
        base: u64,
        /// Mean width of a page.
        width: u64,
        /// A step.
        step: u64,
        /// Steps off the line, rounded down.
        off: Vec<i16>,
    },
}

impl Fences {
    /// Compresses `fences`, which ascend, if they lie near a line.
    pub fn new(fences: impl ExactSizeIterator<Item = u64> + Clone) -> Self {
        Self::line(fences.clone()).unwrap_or_else(|| Self::Exact(fences.collect()))
    }

    fn line(fences: impl ExactSizeIterator<Item = u64> + Clone) -> Option<Self> {
        if fences.len() < LINE_PAGES_MIN {
            return None;
        }
        let (base, last) = (fences.clone().next()?, fences.clone().last()?);
        let width = (last - base) / (fences.len() as u64 - 1);
        let step = width / STEPS;
        if step == 0 {
            return None;
        }
        let mut off = Vec::with_capacity(fences.len());
        let mut below = 0;
        for (page, fence) in fences.enumerate() {
            let on_line = base + width * page as u64;
            let steps = (i128::from(fence) - i128::from(on_line)).div_euclid(i128::from(step));
            let steps = i16::try_from(steps).ok()?;
            let floor = at_line(base, width, step, page, steps);
            if floor < below {
                return None; // two fences so close that rounding would turn them round
            }
            below = floor;
            off.push(steps);
        }
        Some(Self::Line { base, width, step, off })
    }

    /// Number of pages.
    #[allow(clippy::len_without_is_empty)] // a segment without pages is written, and nobody asks
    pub fn len(&self) -> usize {
        match self {
            Self::Exact(fences) => fences.len(),
            Self::Line { off, .. } => off.len(),
        }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Exact(fences) => fences.len() * 8,
            Self::Line { off, .. } => off.len() * 2,
        }
    }

    /// A bound that page number `page` does not begin below.
    fn floor(&self, page: usize) -> u64 {
        match self {
            Self::Exact(fences) => fences[page],
            Self::Line { base, width, step, off } => at_line(*base, *width, *step, page, off[page]),
        }
    }

    /// By how much a page may begin above its floor, exclusive.
    fn slack(&self) -> u64 {
        match self {
            Self::Exact(_) => 1,
            Self::Line { step, .. } => *step,
        }
    }

    /// True if a page whose first id has this key may be page number `page`.
    pub fn fits(&self, page: usize, key: u64) -> bool {
        let floor = self.floor(page);
        floor <= key && key - floor < self.slack()
    }

    /// The pages that may hold an id with this key: mostly one.
    pub fn pages_for(&self, key: u64) -> std::ops::Range<usize> {
        let mut near = 0..self.len();
        if let Self::Line { base, width, .. } = self {
            let guess = usize::try_from(key.saturating_sub(*base) / width).unwrap_or(usize::MAX);
            near.start = guess.saturating_sub(OFF_MAX + 2).min(self.len());
            near.end = guess.saturating_add(OFF_MAX + 3).min(self.len());
        }
        let slack = self.slack();
        // Pages from `end` on begin above the key, and the one at `start` begins below it.
        let end = first(near.clone(), |page| self.floor(page) > key);
        let start = first(near.start.min(end)..end, |page| self.floor(page).saturating_add(slack) > key);
        start.saturating_sub(1).min(end)..end
    }
}

fn at_line(base: u64, width: u64, step: u64, page: usize, steps: i16) -> u64 {
    // Both products are far below 2^63: a line has 512 pages or more.
    (base + width * page as u64).saturating_add_signed(i64::from(steps) * step as i64)
}

/// The first number of a range for which `holds`, given that it holds for all behind it.
fn first(range: std::ops::Range<usize>, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = (low + high) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pages that may hold the key, by the definition.
    fn must_name(fences: &[u64], key: u64) -> std::ops::Range<usize> {
        let end = fences.partition_point(|fence| *fence <= key);
        fences[..end].partition_point(|fence| *fence < key).saturating_sub(1).min(end)..end
    }

    fn check(fences: &[u64], keys: impl Iterator<Item = u64>) -> (usize, usize) {
        let made = Fences::new(fences.iter().copied());
        let (mut named, mut asked) = (0, 0);
        for key in keys {
            let (must, may) = (must_name(fences, key), made.pages_for(key));
            assert!(may.start <= must.start && must.end <= may.end, "{key}: {must:?} in {may:?}");
            named += may.len();
            asked += 1;
        }
        for (page, fence) in fences.iter().enumerate() {
            assert!(made.fits(page, *fence));
        }
        (named, asked)
    }

    #[test]
    fn uniform_fences_lie_near_a_line_and_name_one_page() {
        let mut ids: Vec<u64> = (0..1_000_000u64)
            .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ (n * n))
            .collect();
        ids.iter_mut().for_each(|id| {
            *id = u64::from_le_bytes(blake3::hash(&id.to_le_bytes()).as_bytes()[..8].try_into().unwrap());
        });
        ids.sort_unstable();
        let fences: Vec<u64> = ids.iter().copied().step_by(85).collect();
        assert!(matches!(Fences::new(fences.iter().copied()), Fences::Line { .. }));
        let (named, asked) = check(&fences, ids.iter().copied());
        assert!(named < asked * 102 / 100, "{named} pages for {asked} ids");
        check(&fences, [0, 1, u64::MAX, u64::MAX - 1].into_iter());
    }

    #[test]
    fn crooked_fences_are_kept_as_they_are() {
        for fences in [vec![7; 600], (0..600).map(|n| n * n * n).collect(), vec![], vec![3]] {
            assert!(matches!(Fences::new(fences.iter().copied()), Fences::Exact(_)));
            check(&fences, 0..1000);
        }
        let mut close: Vec<u64> = (0..600).map(|n| n << 40).collect();
        close[300] = close[299] + 1;
        check(
            &close,
            close.iter().flat_map(|f| [f.saturating_sub(1), *f, f + 1]).collect::<Vec<_>>().into_iter(),
        );
    }

    proptest! {
        #[test]
        fn any_fences_name_the_right_pages(mut fences in proptest::collection::vec(any::<u64>(), 0..700), keys in proptest::collection::vec(any::<u64>(), 20)) {
            fences.sort_unstable();
            let own: Vec<u64> = fences.iter().step_by(9).copied().collect();
            check(&fences, keys.into_iter().chain(own));
        }
    }
}
