//! Pages of describe calls.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::error::{ApiError, ApiResult};
use super::params::Params;

/// One page, and the token of the next.
pub struct Page<T> {
    /// Items of this page.
    pub items: Vec<T>,
    /// `None` on the last.
    pub next: Option<String>,
}

/// Cuts a page out of `items`, which are sorted by `id`. `least` and `most` bound MaxResults. With `empty_every` n, every nth page is empty.
pub fn page<T>(
    params: &Params,
    items: Vec<T>,
    id: impl Fn(&T) -> &str,
    (least, most): (usize, usize),
    empty_every: usize,
) -> ApiResult<Page<T>> {
    let size: Option<usize> = params.number("MaxResults")?;
    if let Some(size) = size
        && !(least..=most).contains(&size)
    {
        let message = format!(
            "Value ( {size} ) for parameter maxResults is invalid. Expecting a value between {least} and {most}."
        );
        return Err(ApiError::value(message));
    }
    let (after, number) = match params.get("NextToken") {
        Some(token) => decode(token)?,
        None => (String::new(), 0),
    };
    let size = size.unwrap_or(most);
    let mut rest: Vec<T> = items.into_iter().filter(|item| id(item) > after.as_str()).collect();
    if empty_every > 0 && (number + 1) % empty_every == 0 && !rest.is_empty() {
        return Ok(Page { items: Vec::new(), next: Some(encode(&after, number + 1)) });
    }
    let more = rest.len() > size;
    rest.truncate(size);
    let next = rest.last().filter(|_| more).map(|last| encode(id(last), number + 1));
    Ok(Page { items: rest, next })
}

fn encode(after: &str, number: usize) -> String {
    STANDARD.encode(format!("page\n{number}\n{after}"))
}

fn decode(token: &str) -> ApiResult<(String, usize)> {
    let invalid = || ApiError::client("InvalidNextToken", "The token is invalid or expired");
    let text =
        STANDARD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(invalid)?;
    let mut parts = text.split('\n');
    match (parts.next(), parts.next().and_then(|n| n.parse().ok()), parts.next()) {
        (Some("page"), Some(number), Some(after)) => Ok((after.to_owned(), number)),
        _ => Err(invalid()),
    }
}
