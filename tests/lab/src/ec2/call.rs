//! A call to the EC2 API while it is answered.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::access::Caller;
use crate::api::{ApiError, ApiResult, Params};
use crate::clock::Ms;
use crate::core::{Core, Settings};
use crate::policy::{Decision, Question, decide};
use crate::state::{Region, Tags};

/// Everything a handler needs.
pub struct Call<'a> {
    /// The lab.
    pub core: &'a Arc<Core>,
    /// Parameters.
    pub params: &'a Params,
    /// Who calls.
    pub caller: &'a Caller,
    /// Region called.
    pub region: &'a str,
    /// The moment of the call.
    pub now: Ms,
    /// `CreateVolume`.
    pub action: &'a str,
    /// What holds at this moment.
    pub settings: Settings,
    /// What the call makes ends in error.
    pub ends_in_error: bool,
    checked: Cell<bool>,
    made: RefCell<Vec<String>>,
}

/// Something a call does something to.
#[derive(Clone, Debug)]
pub struct Target {
    kind: &'static str,
    id: String,
    tags: Tags,
    owned: bool,
}

impl Target {
    /// A resource that exists.
    pub fn of(kind: &'static str, id: &str, tags: &Tags) -> Self {
        Self { kind, id: id.to_owned(), tags: tags.clone(), owned: true }
    }

    /// One that is to be made.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, id: "*".into(), tags: Tags::new(), owned: true }
    }

    fn arn(&self, region: &str, account: &str) -> String {
        // ARNs of snapshots and images name no account
        let account = if matches!(self.kind, "snapshot" | "image") { "" } else { account };
        format!("arn:aws:ec2:{region}:{account}:{}/{}", self.kind, self.id)
    }
}

impl<'a> Call<'a> {
    /// A call of this moment.
    pub fn new(
        core: &'a Arc<Core>,
        params: &'a Params,
        caller: &'a Caller,
        region: &'a str,
        action: &'a str,
        ends_in_error: bool,
    ) -> Self {
        Self {
            core,
            params,
            caller,
            region,
            now: core.clock.now_ms(),
            action,
            settings: core.settings(),
            ends_in_error,
            checked: Cell::new(false),
            made: RefCell::default(),
        }
    }

    /// Works on the region.
    pub fn with<T>(&self, work: impl FnOnce(&mut Region) -> ApiResult<T>) -> ApiResult<T> {
        self.core.try_with(self.region, work)
    }

    /// From when on something made by this call is found.
    pub fn visible_ms(&self) -> Ms {
        self.now + self.settings.timing.eventual_ms
    }

    /// Whether [`Self::allow`] was called.
    pub fn was_checked(&self) -> bool {
        self.checked.get()
    }

    /// Refuses the call if the policy does not allow it on every target, or if it was only a trial. Comes after the parameters are found right, and before anything is done.
    pub fn allow(&self, targets: &[Target]) -> ApiResult<()> {
        self.checked.set(true);
        if let Some(policy) = &self.caller.policy {
            let mut base = BTreeMap::from([
                ("aws:RequestedRegion".to_owned(), vec![self.region.to_owned()]),
                ("ec2:Region".to_owned(), vec![self.region.to_owned()]),
                ("aws:PrincipalArn".to_owned(), vec![self.caller.arn.clone()]),
                ("aws:PrincipalAccount".to_owned(), vec![self.caller.account.clone()]),
            ]);
            let request_tags = self.request_tags()?;
            if !request_tags.is_empty() {
                base.insert("aws:TagKeys".into(), request_tags.keys().cloned().collect());
            }
            for (key, value) in &request_tags {
                base.insert(format!("aws:RequestTag/{key}"), vec![value.clone()]);
            }
            let action = format!("ec2:{}", self.action);
            if targets.is_empty() {
                self.ask(policy, &action, "*", &base)?;
            }
            for target in targets {
                let mut context = base.clone();
                for (key, value) in &target.tags {
                    context.insert(format!("aws:ResourceTag/{key}"), vec![value.clone()]);
                    context.insert(format!("ec2:ResourceTag/{key}"), vec![value.clone()]);
                }
                if target.owned {
                    context.insert("ec2:Owner".into(), vec![self.core.options.account.clone()]);
                }
                self.ask(policy, &action, &target.arn(self.region, &self.core.options.account), &context)?;
            }
            if let Some(profile) =
                self.params.below("IamInstanceProfile").filter(|_| self.action == "RunInstances")
            {
                let name = profile
                    .get("Name")
                    .or_else(|| profile.get("Arn")?.rsplit('/').next())
                    .unwrap_or_default();
                let arn = format!("arn:aws:iam::{}:role/{name}", self.core.options.account);
                let mut context = base.clone();
                context.insert("iam:PassedToService".into(), vec!["ec2.amazonaws.com".into()]);
                self.ask(policy, "iam:PassRole", &arn, &context)?;
            }
            for kind in self.params.tagged_kinds() {
                let mut context = base.clone();
                context.insert("ec2:CreateAction".into(), vec![self.action.to_owned()]);
                let account = if matches!(kind.as_str(), "snapshot" | "image") {
                    ""
                } else {
                    &self.core.options.account
                };
                let arn = format!("arn:aws:ec2:{}:{account}:{kind}/*", self.region);
                self.ask(policy, "ec2:CreateTags", &arn, &context)?;
            }
        }
        if self.params.flag("DryRun")?.unwrap_or(false) {
            let message = "Request would have succeeded, but DryRun flag is set.";
            return Err(ApiError::new(412, "DryRunOperation", message));
        }
        Ok(())
    }

    fn request_tags(&self) -> ApiResult<Tags> {
        let mut tags = if matches!(self.action, "CreateTags" | "DeleteTags") {
            self.params.tags()?
        } else {
            Tags::new()
        };
        for specification in self.params.structures("TagSpecification") {
            tags.extend(specification.tags()?);
        }
        Ok(tags)
    }

    fn ask(
        &self,
        policy: &serde_json::Value,
        action: &str,
        resource: &str,
        context: &BTreeMap<String, Vec<String>>,
    ) -> ApiResult<()> {
        let because = match decide(policy, &Question { action, resource, context }) {
            Decision::Allowed => return Ok(()),
            Decision::Denied => "with an explicit deny in an identity-based policy".to_owned(),
            Decision::NotAllowed => format!("because no identity-based policy allows the {action} action"),
        };
        let encoded = STANDARD.encode(format!("{action} {resource}"));
        let message = format!(
            "You are not authorized to perform this operation. User: {} is not authorized to perform: {action} on resource: {resource} {because}. Encoded authorization failure message: {encoded}",
            self.caller.arn
        );
        Err(ApiError::new(403, "UnauthorizedOperation", message))
    }

    /// Whether the caller may use a KMS key: for AWS' own key nothing is asked, for others the policy has to allow what EC2 does with them.
    pub fn may_use_key(&self, region: &Region, key: Option<&str>) -> bool {
        let Some(key) = key else { return true };
        !region.kms_denied(Some(key))
            && self.caller.may_use_key(region, key, &["kms:CreateGrant", "kms:Decrypt"])
    }

    /// Tags of a kind that the call makes; too many are refused.
    pub fn tags_for(&self, kind: &str) -> ApiResult<Tags> {
        let tags = self.params.tags_for(kind)?;
        if tags.len() > self.settings.limits.tags {
            let message = format!("More than {} tags specified", self.settings.limits.tags);
            return Err(ApiError::client("TagLimitExceeded", message));
        }
        Ok(tags)
    }

    /// What an earlier call with the same client token made, if there was one.
    pub fn replay(&self, region: &Region) -> ApiResult<Option<Vec<String>>> {
        let Some(token) = self.params.get("ClientToken").filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        if token.len() > 64 {
            return Err(ApiError::value(format!("Invalid value '{token}' for clientToken: too long")));
        }
        match region.tokens.get(&(self.action.to_owned(), token.to_owned())) {
            None => Ok(None),
            Some((same, ids)) if *same == self.params.fingerprint() => {
                self.params.read_all();
                Ok(Some(ids.clone()))
            }
            Some(_) => {
                let message = format!(
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s). (client token {token})"
                );
                Err(ApiError::client("IdempotentParameterMismatch", message))
            }
        }
    }

    /// Remembers what was made under the client token.
    pub fn remember(&self, region: &mut Region, ids: Vec<String>) {
        if let Some(token) = self.params.get("ClientToken").filter(|token| !token.is_empty()) {
            let key = (self.action.to_owned(), token.to_owned());
            region.tokens.insert(key, (self.params.fingerprint(), ids.clone()));
        }
        self.made.borrow_mut().extend(ids);
    }
}
