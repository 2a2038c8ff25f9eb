//! Token buckets.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::options::Bucket;

#[derive(Debug)]
struct Level {
    tokens: f64,
    at: Instant,
}

/// Buckets by name. They run on real time.
#[derive(Debug, Default)]
pub struct Meters {
    levels: Mutex<HashMap<String, Level>>,
}

impl Meters {
    /// Takes a token of each bucket, or of none. The name of the one that is empty, if one is.
    pub fn take<'a>(&self, buckets: &[(&'a str, Bucket)]) -> Result<(), &'a str> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for (name, bucket) in buckets.iter().filter(|(_, bucket)| bucket.per_second > 0.0) {
            let full = Level { tokens: bucket.burst, at: now };
            let level = levels.entry((*name).to_owned()).or_insert(full);
            let back = now.duration_since(level.at).as_secs_f64() * bucket.per_second;
            level.tokens = (level.tokens + back).min(bucket.burst);
            level.at = now;
            if level.tokens < 1.0 {
                return Err(name);
            }
        }
        for (name, _) in buckets {
            if let Some(level) = levels.get_mut(*name) {
                level.tokens -= 1.0;
            }
        }
        Ok(())
    }

    /// All buckets are full again.
    pub fn refill(&self) {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_refuses_and_takes_nothing_from_the_others() {
        let meters = Meters::default();
        let (small, big) = (("small", Bucket::new(2.0, 0.001)), ("big", Bucket::new(3.0, 0.001)));
        assert!(meters.take(&[big, small]).is_ok() && meters.take(&[big, small]).is_ok());
        assert_eq!(meters.take(&[big, small]), Err("small"));
        assert!(meters.take(&[big]).is_ok());
        assert_eq!(meters.take(&[big]), Err("big"));
        assert!(meters.take(&[("off", Bucket::OFF)]).is_ok());
    }
}
