//! Parameters of the EC2 Query protocol: `Filter.1.Value.2=x`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::str::FromStr;

use super::error::{ApiError, ApiResult};
use crate::state::Tags;

/// The parameters of a call, or those below a prefix. Remembers which were looked at.
#[derive(Clone, Debug)]
pub struct Params {
    all: Rc<BTreeMap<String, String>>,
    read: Rc<RefCell<BTreeSet<String>>>,
    prefix: String,
}

impl Params {
    /// Of a form.
    pub fn parse(form: &[u8]) -> Self {
        let all = form_urlencoded::parse(form).into_owned().collect();
        Self { all: Rc::new(all), read: Rc::default(), prefix: String::new() }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let name = self.name(name);
        let value = self.all.get(&name)?;
        self.read.borrow_mut().insert(name);
        Some(value)
    }

    /// A value that must be there.
    pub fn required(&self, name: &str) -> ApiResult<&str> {
        match self.get(name) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(ApiError::missing(&self.name(name))),
        }
    }

    /// A value as owned text.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// A number.
    pub fn number<T: FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        let parse = |text: &str| {
            let wrong =
                |_| ApiError::value(format!("Value ({text}) for parameter {} is invalid. ", self.name(name)));
            text.parse().map_err(wrong)
        };
        self.get(name).map(parse).transpose()
    }

    /// `true` or `false`.
    pub fn flag(&self, name: &str) -> ApiResult<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some("true" | "True" | "1") => Ok(Some(true)),
            Some("false" | "False" | "0") => Ok(Some(false)),
            Some(text) => {
                let name = self.name(name);
                Err(ApiError::value(format!("Value ({text}) for parameter {name} is invalid. ")))
            }
        }
    }

    /// What stands below a name: `Ebs` → `Ebs.VolumeSize`. `None` if nothing does.
    pub fn below(&self, name: &str) -> Option<Self> {
        let prefix = format!("{}{name}.", self.prefix);
        let there = self.all.range(prefix.clone()..).next().is_some_and(|(key, _)| key.starts_with(&prefix));
        there.then(|| Self { all: self.all.clone(), read: self.read.clone(), prefix })
    }

    /// Numbers of a list's items, in order.
    fn numbers(&self, name: &str) -> Vec<u32> {
        let prefix = format!("{}{name}.", self.prefix);
        let keys = self.all.range(prefix.clone()..).map(|(key, _)| key);
        let rest = keys.take_while(|key| key.starts_with(&prefix)).map(|key| &key[prefix.len()..]);
        let found: BTreeSet<u32> = rest.filter_map(|r| r.split('.').next()?.parse().ok()).collect();
        found.into_iter().collect()
    }

    /// A list of values.
    pub fn list(&self, name: &str) -> Vec<String> {
        let item = |n: u32| self.text(&format!("{name}.{n}"));
        self.numbers(name).into_iter().filter_map(item).collect()
    }

    /// A list of structures.
    pub fn structures(&self, name: &str) -> Vec<Self> {
        self.numbers(name).into_iter().filter_map(|n| self.below(&format!("{name}.{n}"))).collect()
    }

    /// Tags that a new resource of this kind shall have.
    pub fn tags_for(&self, kind: &str) -> ApiResult<Tags> {
        let mut tags = Tags::new();
        for specification in self.structures("TagSpecification") {
            if specification.required("ResourceType")? == kind {
                tags.extend(specification.tags()?);
            }
        }
        Ok(tags)
    }

    /// Kinds of resources that the tag specifications name.
    pub fn tagged_kinds(&self) -> Vec<String> {
        let specifications = self.structures("TagSpecification");
        specifications.iter().filter_map(|s| s.text("ResourceType")).collect()
    }

    /// `Tag.N.Key`, `Tag.N.Value`.
    pub fn tags(&self) -> ApiResult<Tags> {
        let mut tags = Tags::new();
        for tag in self.structures("Tag") {
            let key = tag.required("Key")?.to_owned();
            let value = tag.text("Value").unwrap_or_default();
            if key.starts_with("aws:") {
                let message = format!("Tag keys starting with 'aws:' are reserved for internal use ({key})");
                return Err(ApiError::value(message));
            }
            if key.chars().count() > 127 || value.chars().count() > 255 {
                let message = "Tag key exceeds the maximum length of 127 characters, or value 255";
                return Err(ApiError::value(message));
            }
            if tags.insert(key.clone(), value).is_some() {
                return Err(ApiError::value(format!("Duplicate tag key '{key}' specified.")));
            }
        }
        Ok(tags)
    }

    /// Everything but what may differ between a call and its repetition.
    pub fn fingerprint(&self) -> String {
        let beside = ["ClientToken", "DryRun", "Version", "AWSAccessKeyId", "Signature", "Timestamp"];
        let kept = self.all.iter().filter(|(key, _)| !beside.contains(&key.as_str()));
        kept.map(|(key, value)| format!("{key}={value}\n")).collect()
    }

    /// Parameters that nobody looked at: what the lab did not understand.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        self.all.keys().filter(|key| !read.contains(*key)).cloned().collect()
    }

    /// Counts all parameters as looked at: those of a repeated call were, the first time.
    pub fn read_all(&self) {
        self.read.borrow_mut().extend(self.all.keys().cloned());
    }

    /// Names of all parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.keys().map(String::as_str)
    }
}
