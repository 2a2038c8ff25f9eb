//! `Filter.N.Name` and `Filter.N.Value.M`, with wildcards.

use super::error::{ApiError, ApiResult};
use super::params::Params;
use crate::state::Tags;

/// Filters of a describe call. All must match; of a filter's values, one.
#[derive(Debug)]
pub struct Filters {
    filters: Vec<(String, Vec<String>)>,
}

impl Filters {
    /// Of a call.
    pub fn of(params: &Params) -> ApiResult<Self> {
        let mut filters = Vec::new();
        for filter in params.structures("Filter") {
            let name = filter.required("Name")?.to_owned();
            let values = filter.list("Value");
            if values.is_empty() {
                return Err(ApiError::value("The filter 'null' is invalid"));
            }
            filters.push((name, values));
        }
        Ok(Self { filters })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Whether something with these tags passes. `field` gives the values of a filter's name, or `None` if there is no such filter.
    pub fn pass(&self, tags: &Tags, field: impl Fn(&str) -> Option<Vec<String>>) -> ApiResult<bool> {
        let mut pass = true;
        for (name, patterns) in &self.filters {
            let values = if let Some(key) = name.strip_prefix("tag:") {
                tags.get(key).cloned().into_iter().collect()
            } else if name == "tag-key" {
                tags.keys().cloned().collect()
            } else if name == "tag-value" {
                tags.values().cloned().collect()
            } else {
                field(name).ok_or_else(|| ApiError::value(format!("The filter '{name}' is invalid")))?
            };
            pass &= values.iter().any(|value| patterns.iter().any(|pattern| like(pattern, value)));
        }
        Ok(pass)
    }

    /// Refuses names that nothing has, also where there is nothing to look at.
    pub fn check(&self, known: &[&str]) -> ApiResult<()> {
        for (name, _) in &self.filters {
            let tag = name.starts_with("tag:") || name == "tag-key" || name == "tag-value";
            if !tag && !known.contains(&name.as_str()) {
                return Err(ApiError::value(format!("The filter '{name}' is invalid")));
            }
        }
        Ok(())
    }
}

/// `*` stands for anything, `?` for one character, a backslash takes their meaning away.
pub fn like(pattern: &str, text: &str) -> bool {
    fn at(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', rest @ ..] => (0..=text.len()).any(|n| at(rest, &text[n..])),
            ['?', rest @ ..] => !text.is_empty() && at(rest, &text[1..]),
            ['\\', c, rest @ ..] | [c, rest @ ..] => text.first() == Some(c) && at(rest, &text[1..]),
        }
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    at(&pattern, &text)
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn wildcards() {
        assert!(like("web-*", "web-01") && like("*", "") && like("w?b", "wab") && like("a\\*b", "a*b"));
        assert!(!like("web", "web-01") && !like("a\\*b", "axb") && !like("?", ""));
    }
}
