//! `penstock`: backup of EC2 machines and block devices. `docs/CLI.md` is the manual of the command line.

mod aws;
mod cli;
mod ec2backup;
mod ec2restore;
mod ec2run;

fn main() -> std::process::ExitCode {
    cli::main()
}
