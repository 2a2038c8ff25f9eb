//! Lists of blocks with the tokens to read them, in pages. Tokens are long and expire, so only the pages that are in use are kept.

use std::collections::VecDeque;
use std::ops::Range;

use super::super::clients::Clients;
use super::super::error::{AwsError, Kind};
use super::super::retry::Patience;

/// The most that AWS gives at once.
const PAGE: i32 = 10_000;
/// Pages in memory: fetchers lag behind the planner by less than one.
const PAGES_KEPT: usize = 4;

/// What is listed.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Blocks of this snapshot …
    pub snapshot: String,
    /// … all, or those that differ from this one.
    pub since: Option<String>,
}

/// Consecutive blocks of a listing.
#[derive(Clone, Debug)]
pub struct Page {
    /// Every block of the listing in this range of indexes is in `blocks`.
    covers: Range<u32>,
    /// The listing goes on behind.
    more: bool,
    /// Sorted by index. Without a token the block is zero: the earlier snapshot had it, this one has not.
    blocks: Vec<(u32, Option<Box<str>>)>,
}

impl Page {
    /// Where the listing goes on.
    pub fn next(&self) -> Option<u32> {
        self.more.then_some(self.covers.end)
    }

    /// Of its blocks.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().map(|(index, _)| *index)
    }

    fn first_from(&self, index: u32) -> Option<u32> {
        let at = self.blocks.partition_point(|(i, _)| *i < index);
        self.blocks.get(at).map(|(i, _)| *i)
    }

    fn token(&self, index: u32) -> Option<Option<Box<str>>> {
        let at = self.blocks.binary_search_by_key(&index, |(i, _)| *i).ok()?;
        Some(self.blocks[at].1.clone())
    }
}

impl Listing {
    /// The first page with blocks at or after `from`. Empty pages that go on are followed.
    pub async fn page(&self, aws: &Clients, from: u32) -> Result<Page, AwsError> {
        let start = i32::try_from(from).unwrap_or(i32::MAX);
        let mut token: Option<String> = None;
        loop {
            let (mut blocks, next) = match &self.since {
                None => self.all(aws, start, token).await?,
                Some(since) => self.changed(aws, since, start, token).await?,
            };
            blocks.retain(|(index, _)| *index >= from);
            blocks.sort_unstable_by_key(|(index, _)| *index);
            let more = next.is_some();
            match blocks.last() {
                Some((last, _)) => {
                    let end = if more { last + 1 } else { u32::MAX };
                    return Ok(Page { covers: from..end, more, blocks });
                }
                None if !more => return Ok(Page { covers: from..u32::MAX, more, blocks }),
                None => token = next,
            }
        }
    }

    async fn all(
        &self,
        aws: &Clients,
        start: i32,
        token: Option<String>,
    ) -> Result<(Vec<(u32, Option<Box<str>>)>, Option<String>), AwsError> {
        let answer = aws
            .retry
            .call("ListSnapshotBlocks", &self.snapshot, Patience::FRESH, || async {
                aws.list_rate.turn().await;
                aws.ebs
                    .list_snapshot_blocks()
                    .snapshot_id(&self.snapshot)
                    .max_results(PAGE)
                    .starting_block_index(start)
                    .set_next_token(token.clone())
                    .send()
                    .await
            })
            .await?;
        let block = |b: &aws_sdk_ebs::types::Block| {
            Some((u32::try_from(b.block_index()?).ok()?, b.block_token().map(Box::from)))
        };
        Ok((answer.blocks().iter().filter_map(block).collect(), next_of(answer.next_token())))
    }

    async fn changed(
        &self,
        aws: &Clients,
        since: &str,
        start: i32,
        token: Option<String>,
    ) -> Result<(Vec<(u32, Option<Box<str>>)>, Option<String>), AwsError> {
        let answer = aws
            .retry
            .call("ListChangedBlocks", &self.snapshot, Patience::FRESH, || async {
                aws.list_rate.turn().await;
                aws.ebs
                    .list_changed_blocks()
                    .first_snapshot_id(since)
                    .second_snapshot_id(&self.snapshot)
                    .max_results(PAGE)
                    .starting_block_index(start)
                    .set_next_token(token.clone())
                    .send()
                    .await
            })
            .await?;
        let block = |b: &aws_sdk_ebs::types::ChangedBlock| {
            Some((u32::try_from(b.block_index()?).ok()?, b.second_block_token().map(Box::from)))
        };
        Ok((answer.changed_blocks().iter().filter_map(block).collect(), next_of(answer.next_token())))
    }
}

fn next_of(token: Option<&str>) -> Option<String> {
    token.filter(|t| !t.is_empty()).map(str::to_owned)
}

/// Pages of a listing, fetched as they are needed.
pub struct Window {
    listing: Listing,
    pages: VecDeque<Page>,
}

impl Window {
    /// None are there yet.
    pub fn new(listing: Listing) -> Self {
        Self { listing, pages: VecDeque::new() }
    }

    async fn page_at(&mut self, aws: &Clients, index: u32) -> Result<&Page, AwsError> {
        if let Some(at) = self.pages.iter().position(|page| page.covers.contains(&index)) {
            return Ok(&self.pages[at]);
        }
        let page = self.listing.page(aws, index).await?;
        if self.pages.len() == PAGES_KEPT {
            self.pages.pop_front();
        }
        self.pages.push_back(page);
        self.pages.back().ok_or_else(|| {
            AwsError::new("ListSnapshotBlocks", &self.listing.snapshot, Kind::Refused, "internal error")
        })
    }

    /// The token of a block: `None` if it is not in the listing, `Some(None)` if it is there and zero.
    pub async fn token(&mut self, aws: &Clients, index: u32) -> Result<Option<Option<Box<str>>>, AwsError> {
        Ok(self.page_at(aws, index).await?.token(index))
    }

    /// The first block of the listing at or after `index`.
    pub async fn first_from(&mut self, aws: &Clients, mut index: u32) -> Result<Option<u32>, AwsError> {
        loop {
            let page = self.page_at(aws, index).await?;
            match (page.first_from(index), page.next()) {
                (Some(found), _) => return Ok(Some(found)),
                (None, Some(next)) => index = next,
                (None, None) => return Ok(None),
            }
        }
    }

    /// Blocks of the listing that follow `first` without a gap, as far as they are known.
    pub fn run_from(&self, first: u32) -> u32 {
        let Some(page) = self.pages.iter().find(|page| page.covers.contains(&first)) else {
            return first + 1;
        };
        let at = page.blocks.partition_point(|(i, _)| *i < first);
        let run = page.blocks[at..].iter().zip(first..).take_while(|((i, _), n)| i == n).count();
        first + u32::try_from(run.max(1)).unwrap_or(1)
    }

    /// Forgets the page that has this block: its tokens are no good any more.
    pub fn forget(&mut self, index: u32) {
        self.pages.retain(|page| !page.covers.contains(&index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(covers: Range<u32>, more: bool, indexes: &[u32]) -> Page {
        let blocks = indexes.iter().map(|i| (*i, (*i != 3).then(|| Box::from("t")))).collect();
        Page { covers, more, blocks }
    }

    #[test]
    fn pages_answer_for_what_they_cover() {
        let one = page(0..8, true, &[1, 2, 3, 7]);
        assert_eq!(one.next(), Some(8));
        assert_eq!(one.token(2), Some(Some("t".into())));
        assert_eq!(one.token(3), Some(None), "given back since");
        assert_eq!(one.token(5), None);
        assert_eq!((one.first_from(4), one.first_from(8)), (Some(7), None));
        let listing = Listing { snapshot: "snap-1".into(), since: None };
        let mut window = Window { listing, pages: VecDeque::from([one]) };
        assert_eq!((window.run_from(1), window.run_from(7)), (4, 8));
        window.forget(7);
        assert!(window.pages.is_empty());
    }
}
