//! `penstock man`: manual pages.

use std::path::PathBuf;

use super::exit::{Exit, Failure, Outcome};
use super::output;

const EXAMPLES: &str = "\
Examples:
  penstock man | man -l -                       read the main page
  penstock man --dir /usr/local/share/man/man1  install all pages";

/// Write the manual pages
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Write a page for the program and for each verb into this directory, instead of the main page to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the main page, or writes all of them.
pub fn run(args: &Args) -> Outcome {
    match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(Failure::io("create", dir.display()))?;
            clap_mangen::generate_to(super::command(), dir).map_err(Failure::io("write", dir.display()))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(super::command())
                .render(&mut page)
                .map_err(Failure::io("write", "the page"))?;
            output::print(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        run(&Args { dir: Some(dir.path().to_owned()) }).unwrap();
        for page in ["penstock.1", "penstock-backup.1", "penstock-restore.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
    }
}
