//! `postrider key`: new keys, printed and kept nowhere.

use clap::{Subcommand, ValueEnum};

use crate::{data_dir, output};

/// Keys of the installation.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Print a new key.
    Generate {
        /// What for.
        #[arg(value_enum)]
        kind: KeyKind,
    },
}

/// What a key is for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum KeyKind {
    /// What callers of the API send: `ingest.operator_key`.
    Operator,
    /// What signing secrets are encrypted with: `keys.encryption`.
    Encryption,
}

/// Runs the command.
pub(crate) fn run(command: &KeyCommand) {
    let KeyCommand::Generate { kind } = command;
    output::data(match kind {
        KeyKind::Operator => data_dir::generate_operator_key(),
        KeyKind::Encryption => data_dir::generate_encryption_key(),
    });
}
