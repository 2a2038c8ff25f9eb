//! Block and page tokens: they say what they are for and until when, and are sealed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::clock::Ms;

/// Makes and opens tokens.
#[derive(Debug)]
pub struct Sealer {
    seed: u64,
}

impl Sealer {
    /// Tokens of another seed are not accepted.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    fn seal(&self, text: &str) -> String {
        hex::encode(&Sha256::digest(format!("{}\n{text}", self.seed))[..8])
    }

    /// A token for `what`. `salt` makes equal ones different.
    pub fn make(&self, what: &str, expires_ms: Ms, salt: Ms) -> String {
        let text = format!("{what}\n{expires_ms}\n{salt}");
        STANDARD.encode(format!("{}\n{text}", self.seal(&text)))
    }

    /// What a token is for, if it is one and not too old.
    pub fn open(&self, token: &str, now: Ms) -> Option<String> {
        let plain = String::from_utf8(STANDARD.decode(token).ok()?).ok()?;
        let (seal, text) = plain.split_once('\n')?;
        let mut parts = text.rsplitn(3, '\n');
        let (_salt, expires_ms, what) = (parts.next()?, parts.next()?, parts.next()?);
        let fresh = expires_ms.parse::<Ms>().is_ok_and(|at| at > now);
        (seal == self.seal(text) && fresh).then(|| what.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_expire_and_cannot_be_made_up() {
        let sealer = Sealer::new(1);
        let token = sealer.make("block/snap-1/5", 100, 7);
        assert_eq!(sealer.open(&token, 99).as_deref(), Some("block/snap-1/5"));
        assert_eq!(sealer.open(&token, 100), None);
        assert_ne!(token, sealer.make("block/snap-1/5", 100, 8));
        assert_eq!(Sealer::new(2).open(&token, 99), None);
        assert_eq!(sealer.open("bm9uc2Vuc2U=", 0), None);
    }
}
