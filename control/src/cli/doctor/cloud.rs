//! Where to ask about EC2: nothing of it is asked here, since that takes credentials and time.

use std::path::{Path, PathBuf};

use super::super::check::Check;
use super::super::host;

/// Variables by which credentials are given.
const VARIABLES: [&str; 7] = [
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
];

/// Where this machine has to do with AWS.
pub fn check() -> Option<Check> {
    let found = if host::is_ec2(Path::new("/sys")) {
        "this is an EC2 instance"
    } else if is_configured(
        |name| std::env::var_os(name).is_some_and(|v| !v.is_empty()),
        std::env::home_dir(),
    ) {
        "AWS is configured"
    } else {
        return None;
    };
    Some(Check::ok("EC2", format!("{found}: `penstock ec2 doctor` tells whether instances can be backed up")))
}

fn is_configured(is_set: impl Fn(&str) -> bool, home: Option<PathBuf>) -> bool {
    let dir = home.map(|home| home.join(".aws"));
    VARIABLES.into_iter().any(is_set)
        || dir.is_some_and(|dir| dir.join("config").is_file() || dir.join("credentials").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_seen_by_its_variables_or_files() {
        let home = tempfile::tempdir().unwrap();
        let at = || Some(home.path().to_owned());
        assert!(!is_configured(|_| false, at()) && !is_configured(|_| false, None));
        assert!(is_configured(|name| name == "AWS_PROFILE", None));
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), "").unwrap();
        assert!(is_configured(|_| false, at()));
    }
}
