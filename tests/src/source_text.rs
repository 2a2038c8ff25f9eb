//! Rust source as text: enough of a lexer to tell code from comments and literals, for rules about who mentions whom.

use std::path::{Path, PathBuf};

use crate::workdir::files_under;

/// The `.rs` files under `dir`, with their paths.
pub fn rust_files(dir: &Path) -> Vec<(PathBuf, String)> {
    let is_source = |file: &PathBuf| {
        file.extension().is_some_and(|extension| extension == "rs")
            && !file.components().any(|part| part.as_os_str() == "target")
    };
    let read = |file: PathBuf| {
        let path = dir.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    };
    files_under(dir).into_iter().filter(is_source).map(read).collect()
}

/// The code alone: comments and the contents of string literals are left out, lines stay lines.
pub fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let skipped = if rest.starts_with(b"//") {
            find(rest, b"\n").unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment_bytes(rest)
        } else if let Some(hashes) = raw_string_hashes(rest, at == 0 || is_word(bytes[at - 1])) {
            let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let start = hashes + 2;
            find(&rest[start..], &end).map_or(rest.len(), |n| start + n + end.len())
        } else if rest[0] == b'"' {
            string_bytes(rest)
        } else if rest.starts_with(b"'\"'") {
            3
        } else if rest.starts_with(b"'\\") {
            2 + find(&rest[2..], b"'").map_or(0, |n| n.max(1) + 1)
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        out.extend(rest[..skipped].iter().filter(|byte| **byte == b'\n'));
        at += skipped;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// True if `code` has `word` as a whole word (`unsafe` is not in `unsafe_code`).
pub fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].bytes().next_back();
        let after = code[at + word.len()..].bytes().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The top-level modules of its own crate that `code` names, as `crate::module` or inside `crate::{…}`.
pub fn crate_modules(code: &str) -> Vec<String> {
    let code: String =
        code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::").replace(":: ", "::");
    let mut modules = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(first_names(group)),
            None => modules.extend(first_word(rest)),
        }
    }
    modules.sort();
    modules.dedup();
    modules
}

/// The first word of every member of a use group, whose opening brace has been taken off.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut member_start) = (0, 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            ',' if depth == 0 => {
                names.extend(first_word(&group[member_start..at]));
                member_start = at + 1;
            }
            '}' if depth == 0 => {
                names.extend(first_word(&group[member_start..at]));
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let text = text.trim_start();
    let end = text.bytes().position(|byte| !is_word(byte)).unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// How many `#` a raw string has that starts here.
fn raw_string_hashes(bytes: &[u8], in_word: bool) -> Option<usize> {
    if in_word || bytes[0] != b'r' {
        return None;
    }
    let hashes = bytes[1..].iter().take_while(|byte| **byte == b'#').count();
    (bytes.get(hashes + 1) == Some(&b'"')).then_some(hashes)
}

fn block_comment_bytes(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_bytes(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "let a = \"unsafe // \\\" x\"; // unsafe\n/* unsafe /* nested */ */ let q = '\"'; let b = r#\"unsafe \"\"#; let c = '\\''; fn f<'a>() {} keep";
        let code = code_only(text);
        assert!(!code.contains("unsafe"), "{code}");
        assert!(code.contains("let b") && code.contains("let c") && code.contains("keep"), "{code}");
        assert_eq!(code.matches('\n').count(), 1);
    }

    #[test]
    fn words_and_modules() {
        assert!(has_word("unsafe { x }", "unsafe") && !has_word("deny(unsafe_code)", "unsafe"));
        let code =
            "use crate::{error::{Error, Result}, id,\n crypto :: keys}; crate::limits::X; use crate::format;";
        assert_eq!(crate_modules(code), ["crypto", "error", "format", "id", "limits"]);
    }
}
