//! Tags.

use serde_json::{Value, json};

use super::{Call, Target};
use crate::api::{ApiError, ApiResult, Filters, page};
use crate::state::{Region, Tags};

fn kind(id: &str) -> &'static str {
    match id.split('-').next().unwrap_or_default() {
        "vol" => "volume",
        "snap" => "snapshot",
        "ami" => "image",
        "i" => "instance",
        "sg" => "security-group",
        "subnet" => "subnet",
        "vpc" => "vpc",
        _ => "*",
    }
}

fn targets(call: &Call<'_>, region: &mut Region, ids: &[String]) -> ApiResult<Vec<Target>> {
    if ids.is_empty() {
        return Err(ApiError::missing("ResourceId"));
    }
    let target = |id: &String| Ok(Target::of(kind(id), id, region.tags_mut(id, call.now)?));
    ids.iter().map(target).collect()
}

pub(super) fn create(call: &Call<'_>) -> ApiResult<Value> {
    let ids = call.params.list("ResourceId");
    let tags = call.params.tags()?;
    if tags.is_empty() {
        return Err(ApiError::missing("Tag"));
    }
    call.with(|region| {
        let targets = targets(call, region, &ids)?;
        call.allow(&targets)?;
        for id in &ids {
            let mut all = region.tags_mut(id, call.now)?.clone();
            all.extend(tags.clone());
            if all.len() > call.settings.limits.tags {
                let message = format!("More than {} tags for {id}", call.settings.limits.tags);
                return Err(ApiError::client("TagLimitExceeded", message));
            }
        }
        for id in &ids {
            region.tags_mut(id, call.now)?.extend(tags.clone());
        }
        Ok(json!({"return": true}))
    })
}

pub(super) fn delete(call: &Call<'_>) -> ApiResult<Value> {
    let ids = call.params.list("ResourceId");
    let mut keys: Vec<(String, Option<String>)> = Vec::new();
    for tag in call.params.structures("Tag") {
        keys.push((tag.required("Key")?.to_owned(), tag.text("Value")));
    }
    call.with(|region| {
        let targets = targets(call, region, &ids)?;
        call.allow(&targets)?;
        for id in &ids {
            let tags = region.tags_mut(id, call.now)?;
            if keys.is_empty() {
                tags.retain(|key, _| key.starts_with("aws:"));
            }
            for (key, value) in &keys {
                // an empty value names the empty value, none names any
                if value.is_none() || tags.get(key) == value.as_ref() {
                    tags.remove(key);
                }
            }
        }
        Ok(json!({"return": true}))
    })
}

pub(super) fn describe(call: &Call<'_>) -> ApiResult<Value> {
    let filters = Filters::of(call.params)?;
    filters.check(&["key", "value", "resource-id", "resource-type"])?;
    call.with(|region| {
        call.allow(&[])?;
        let mut all: Vec<(&String, &Tags)> = Vec::new();
        let now = call.now;
        all.extend(region.volumes.values().filter(|r| r.visible_ms <= now).map(|r| (&r.id, &r.tags)));
        all.extend(region.snapshots.values().filter(|r| r.visible_ms <= now).map(|r| (&r.id, &r.tags)));
        all.extend(region.images.values().filter(|r| r.visible_ms <= now).map(|r| (&r.id, &r.tags)));
        all.extend(region.instances.values().filter(|r| r.visible_ms <= now).map(|r| (&r.id, &r.tags)));
        all.extend(region.groups.values().map(|r| (&r.id, &r.tags)));
        all.extend(region.subnets.values().map(|r| (&r.id, &r.tags)));
        let mut found = Vec::new();
        for (id, tags) in all {
            for (key, value) in tags {
                let field = |name: &str| match name {
                    "key" => Some(vec![key.clone()]),
                    "value" => Some(vec![value.clone()]),
                    "resource-id" => Some(vec![id.clone()]),
                    "resource-type" => Some(vec![kind(id).to_owned()]),
                    _ => None,
                };
                if filters.pass(&Tags::from([(key.clone(), value.clone())]), field)? {
                    found.push((format!("{id}/{key}"), id, key, value));
                }
            }
        }
        found.sort();
        let page = page::page(call.params, found, |f| &f.0, (5, 1000), call.settings.limits.empty_page_every)?;
        let tag = |(_, id, key, value): &(String, &String, &String, &String)| {
            json!({"resourceId": id, "resourceType": kind(id), "key": key, "value": value})
        };
        Ok(json!({"tagSet": page.items.iter().map(tag).collect::<Vec<_>>(), "nextToken": page.next}))
    })
}
