//! Access keys and roles: who a caller is, and by which policy.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Ms;
use crate::policy::{Decision, Question, decide};
use crate::state::{Ids, Region};

/// The access key that may do everything.
pub const KEY_ID: &str = "AKIAPENSTOCKLAB00001";
/// Its secret.
pub const SECRET: &str = "lab/SecretThatMustNeverBeShown0000000001";
/// The role of the proxy, which IMDS has credentials of.
pub const PROXY_ROLE: &str = "penstock-proxy";

/// An access key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// `AKIA…` or `ASIA…`.
    pub id: String,
    /// What signatures are made with.
    pub secret: String,
    /// Of temporary credentials.
    #[serde(default)]
    pub session_token: Option<String>,
    /// `arn:aws:iam::123456789012:user/lab`; by default a user with the key's id.
    #[serde(default)]
    pub arn: Option<String>,
    /// What it may do; everything if there is none.
    #[serde(default)]
    pub policy: Option<Value>,
    /// When it ends; never if there is none. Milliseconds since 1970.
    #[serde(default)]
    pub expires_ms: Option<Ms>,
}

/// A role.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Account it is in; the lab's if there is none.
    #[serde(default)]
    pub account: Option<String>,
    /// Whoever takes it on must say this.
    #[serde(default)]
    pub external_id: Option<String>,
    /// What it may do; everything if there is none.
    #[serde(default)]
    pub policy: Option<Value>,
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Access key.
    pub key_id: String,
    /// Account.
    pub account: String,
    /// ARN.
    pub arn: String,
    /// `AIDA…`.
    pub user_id: String,
    /// What it may do; everything if there is none.
    pub policy: Option<Value>,
}

impl Caller {
    /// Whether the policy allows these actions on a KMS key. For the key that AWS made for EBS, nothing is asked.
    pub fn may_use_key(&self, region: &Region, key: &str, actions: &[&str]) -> bool {
        let Some(policy) = self.policy.as_ref().filter(|_| key != region.default_kms_key) else {
            return true;
        };
        let context = BTreeMap::from([(
            "kms:ViaService".to_owned(),
            vec![format!("ec2.{}.amazonaws.com", region.name)],
        )]);
        let allowed = |action: &&str| {
            decide(policy, &Question { action, resource: key, context: &context }) == Decision::Allowed
        };
        actions.iter().all(allowed)
    }
}

/// All keys and roles.
#[derive(Debug)]
pub struct Access {
    account: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    keys: BTreeMap<String, Key>,
    roles: BTreeMap<String, Role>,
    ids: Ids,
}

impl Access {
    /// [`KEY_ID`] and the role [`PROXY_ROLE`].
    pub fn new(account: &str, seed: u64) -> Self {
        let key = Key {
            id: KEY_ID.into(),
            secret: SECRET.into(),
            session_token: None,
            arn: Some(format!("arn:aws:iam::{account}:user/lab")),
            policy: None,
            expires_ms: None,
        };
        let role = Role { name: PROXY_ROLE.into(), account: None, external_id: None, policy: None };
        let inner = Inner {
            keys: BTreeMap::from([(key.id.clone(), key)]),
            roles: BTreeMap::from([(role.name.clone(), role)]),
            ids: Ids::new("credentials", seed),
        };
        Self { account: account.into(), inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key, or replaces it.
    pub fn add_key(&self, key: Key) {
        self.inner().keys.insert(key.id.clone(), key);
    }

    /// Adds a role, or replaces it.
    pub fn add_role(&self, role: Role) {
        self.inner().roles.insert(role.name.clone(), role);
    }

    /// Sets the policy of a key or of a role, and of the sessions of that role. Whether there is such a one.
    pub fn set_policy(&self, name: &str, policy: Option<&Value>) -> bool {
        let mut inner = self.inner();
        let mut found = false;
        let session = format!(":assumed-role/{name}/");
        for key in inner.keys.values_mut() {
            if key.id == name || key.arn.as_ref().is_some_and(|arn| arn.contains(&session)) {
                key.policy = policy.cloned();
                found = true;
            }
        }
        if let Some(role) = inner.roles.get_mut(name) {
            role.policy = policy.cloned();
            found = true;
        }
        found
    }

    /// A key, if it is known.
    pub fn key(&self, id: &str) -> Option<Key> {
        self.inner().keys.get(id).cloned()
    }

    /// A role, if it is known.
    pub fn role(&self, name: &str) -> Option<Role> {
        self.inner().roles.get(name).cloned()
    }

    /// Temporary credentials of a role.
    pub fn session(&self, role: &Role, session: &str, expires_ms: Ms) -> Key {
        let mut inner = self.inner();
        let account = role.account.as_ref().unwrap_or(&self.account);
        let random = inner.ids.hex().to_uppercase();
        let key = Key {
            id: format!("ASIA{}", &random[..16]),
            secret: inner.ids.hex()[..40].to_owned(),
            session_token: Some(format!("lab{}{}", inner.ids.hex(), inner.ids.hex())),
            arn: Some(format!("arn:aws:sts::{account}:assumed-role/{}/{session}", role.name)),
            policy: role.policy.clone(),
            expires_ms: Some(expires_ms),
        };
        inner.keys.insert(key.id.clone(), key.clone());
        key
    }

    /// Who uses a key.
    pub fn caller(&self, key: &Key) -> Caller {
        let arn = key.arn.clone().unwrap_or_else(|| format!("arn:aws:iam::{}:user/{}", self.account, key.id));
        let account = arn.split(':').nth(4).unwrap_or(&self.account).to_owned();
        let tail: String = key.id.chars().skip(4).collect();
        let user_id = match arn.rsplit_once('/') {
            Some((_, session)) if arn.contains(":assumed-role/") => format!("AROA{tail}:{session}"),
            _ => format!("AIDA{tail}"),
        };
        Caller { key_id: key.id.clone(), account, arn, user_id, policy: key.policy.clone() }
    }
}
