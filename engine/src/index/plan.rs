//! Which runs to merge: size tiers, as in a log-structured merge tree.

/// Rows below which sizes make no difference: rewriting so few costs nothing.
const SMALLEST_ROWS: u64 = 4096;
/// Runs of a tier that make a merge, and the ratio between tiers.
const FAN: usize = 4;

/// The tier of a run with so many rows.
fn tier(rows: u64) -> u32 {
    (rows / SMALLEST_ROWS).max(1).ilog(FAN as u64)
}

/// Chooses neighbouring runs to merge, given the rows of each, oldest first. Neighbours, since newer rows win over older ones, and what lies between must not
/// be overtaken. Afterwards each tier has fewer than four runs (a run counts to the tier of the largest newer one, if that is higher), so there are at most
/// 3 · (1 + log4(rows / 4096)), and a row is rewritten about once for each tier it climbs.
pub fn choose(rows: &[u64]) -> Option<std::ops::Range<usize>> {
    // Tiers as seen from the newest run: never lower towards the older ones.
    let mut tiers: Vec<u32> = rows.iter().map(|rows| tier(*rows)).collect();
    for at in (1..tiers.len()).rev() {
        tiers[at - 1] = tiers[at - 1].max(tiers[at]);
    }
    let mut chosen: Option<std::ops::Range<usize>> = None;
    let mut end = rows.len();
    // From the newest tier to the oldest; a merge that makes the next tier full takes it along, so that no row is rewritten twice in a row.
    while end > 0 {
        let start = tiers[..end].partition_point(|tier| *tier > tiers[end - 1]);
        let merged = chosen.as_ref().map(|range| tier(rows[range.clone()].iter().sum()));
        let joins = match merged {
            Some(merged) if merged < tiers[end - 1] => break,
            Some(_) => end - start + 1 >= FAN,
            None => end - start >= FAN,
        };
        match &mut chosen {
            Some(range) if joins => range.start = start,
            Some(_) => break,
            None if joins => chosen = Some(start..end),
            None => {}
        }
        end = start;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settle(runs: &mut Vec<u64>) -> u64 {
        let mut rewritten = 0;
        while let Some(range) = choose(runs) {
            assert!(range.len() >= 2);
            let sum = runs[range.clone()].iter().sum();
            rewritten += sum;
            runs.splice(range, [sum]);
        }
        rewritten
    }

    fn bound(total: u64) -> usize {
        3 * (1 + tier(total) as usize)
    }

    #[test]
    fn a_year_of_nights_leaves_few_runs_and_rewrites_little() {
        let mut runs = vec![160_000_000];
        let (mut rewritten, mut most) = (0, 0);
        for _ in 0..365 {
            runs.push(400_000);
            rewritten += settle(&mut runs);
            most = most.max(runs.len());
        }
        assert!(most <= 13, "{most} runs");
        // 146 million new rows, each rewritten four times at most; the base once, if at all.
        assert!(rewritten < 4 * 146_000_000 + 310_000_000, "{rewritten}");
    }

    #[test]
    fn few_runs_are_left_alone() {
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[5, 5, 5]), None);
        assert_eq!(choose(&[5, 5, 5, 5]), Some(0..4));
        assert_eq!(choose(&[1 << 30, 5, 5, 5]), None);
        assert_eq!(choose(&[1 << 30, 5, 5, 5, 5]), Some(1..5));
        // The small ones become one of the larger tier, which is full with it.
        assert_eq!(choose(&[40_000, 40_000, 40_000, 10_000, 10_000, 10_000, 10_000]), Some(0..7));
        // Small ones under a large newer one count with it.
        assert_eq!(choose(&[5, 5, 5, 1 << 20]), Some(0..4));
    }

    proptest! {
        #[test]
        fn any_history_leaves_few_runs(sizes in proptest::collection::vec(1u64..2_000_000, 0..200)) {
            let mut runs = Vec::new();
            for size in sizes {
                runs.push(size);
                settle(&mut runs);
                prop_assert!(runs.len() <= bound(runs.iter().sum()), "{} runs", runs.len());
            }
        }
    }
}
