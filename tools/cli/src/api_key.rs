//! `sagacity api-key`: makes, lists and revokes the API keys of machines.

use std::path::PathBuf;

use api_keys::{Entry, KeyId, Scope};
use clap::{Args, Subcommand};
use contracts::CustomerId;
use secrecy::ExposeSecret as _;
use time::{Duration, OffsetDateTime};

#[derive(Args, Clone, Debug)]
pub(crate) struct ApiKey {
    #[command(subcommand)]
    act: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Print a new key, this once, and add its hash to the file
    Create {
        #[command(flatten)]
        file: File,
        /// The customer whom the key acts for [default: a new one]
        #[arg(long)]
        customer: Option<CustomerId>,
        /// What the key allows: orders:read, orders:write or operations; may be repeated
        #[arg(long, required = true)]
        scope: Vec<Scope>,
        /// Days until the key ends
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
        /// What the key is for
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// List the keys of the file
    List {
        #[command(flatten)]
        file: File,
    },
    /// Remove a key from the file: within seconds it is refused
    Revoke {
        #[command(flatten)]
        file: File,
        /// The second part of the key, as `list` prints it
        id: KeyId,
    },
}

#[derive(Args, Clone, Debug)]
struct File {
    /// The file of keys
    #[arg(long = "file", env = "API_KEYS_FILE", value_name = "FILE")]
    path: PathBuf,
}

impl ApiKey {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.act {
            Command::Create {
                file,
                customer,
                scope,
                days,
                note,
            } => {
                let customer = customer.unwrap_or_else(CustomerId::new);
                let end = OffsetDateTime::now_utc() + Duration::days(days.into());
                let end = end.replace_millisecond(0)?;
                let (entry, key) = api_keys::create(&file.path, customer, scope, end, note)?;
                eprintln!("{}", describe(&entry));
                eprintln!("keep the key safe: it is not shown again");
                println!("{}", key.expose_secret());
            }
            Command::List { file } => {
                for entry in api_keys::read(&file.path)? {
                    println!("{}", describe(&entry));
                }
            }
            Command::Revoke { file, id } => {
                api_keys::revoke(&file.path, id)?;
                eprintln!("{id} is revoked: it is refused where the file is read again");
            }
        }
        Ok(())
    }
}

fn describe(entry: &Entry) -> String {
    let Entry {
        id,
        customer,
        scopes,
        expires_at,
        note,
        ..
    } = entry;
    let names: Vec<&str> = scopes.iter().map(|scope| scope.name()).collect();
    let ends = match *expires_at > OffsetDateTime::now_utc() {
        true => "ends",
        false => "has ended",
    };
    let end = expires_at.date();
    let names = names.join(",");
    format!("{id}  {customer}  {names:<36}  {ends} {end}  {note}")
}
