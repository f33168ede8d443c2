//! `aptmesh migrate`: the schema of the index's database.

use std::fmt::Write as _;

use anyhow::anyhow;

use crate::config::Config;
use crate::index;
use crate::index::postgres::schema;

pub(super) fn run(config: &Config, only_check: bool) -> anyhow::Result<()> {
    let server = match &config.index {
        index::Config::Postgres(server) => server,
        index::Config::Sqlite(_) => {
            return super::print_out(
                "an index in SQLite is brought up to date when it is opened\n",
            );
        }
    };
    let mut told = String::new();
    if only_check {
        schema::verify(server).map_err(|error| anyhow!("{error}: {}", error.source))?;
    } else {
        let taken = schema::migrate(server);
        for step in taken.map_err(|error| anyhow!("{error}: {}", error.source))? {
            writeln!(told, "migrated: {step}")?;
        }
    }
    writeln!(told, "the schema is version {}, up to date", schema::MIGRATIONS.len())?;
    super::print_out(&told)
}
