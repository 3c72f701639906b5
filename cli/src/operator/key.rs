//! `phalanx key`: what clients identify themselves by.
//!
//! A key is made here, from the system's randomness, and printed once. The cluster is sent its id and an HMAC
//! of its secret, so nothing that control holds, logs or backs up lets anybody in.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Arg, ArgMatches, Command};
use phalanx_chassis::config::Resolved;
use phalanx_proto::api_key::{ApiKeyText, Pepper, RANDOM_BYTES};
use phalanx_proto::change::Change;
use phalanx_proto::id::{KeyId, TenantName};
use phalanx_proto::view::{ApiKey, ClusterView, KeyLimits, KeySecret, Scope};
use serde_json::{Value, json};

use super::limit::{self, Limit};
use super::nearest::unknown;
use super::session::{Seen, Session};
use super::table::{Column, Table};
use super::{Answer, group, list, moment, required, tenant, unknown_action, word};
use crate::failure::Failure;
use crate::settings;

/// The environment that keys name themselves after.
const ENV: &str = "live";

/// What a key allows unless told otherwise: to use every model.
const SCOPES_DEFAULT: &str = "inference:*";

/// How long the secret before a rotation holds unless told otherwise: a day to hand the new one out.
const OVERLAP_DEFAULT: &str = "1d";

/// The longest that a secret holds beside the one that replaces it: a quarter in which every client is redeployed once.
const OVERLAP_MAX_MS: u64 = 90 * moment::DAY_MS;

/// The longest that a key is made for: ten years. Longer is for ever, which is said by leaving `--expires` out.
const EXPIRES_MAX_MS: u64 = 3650 * moment::DAY_MS;

/// A key holds this long before the moment it is made, by the clock here: a router's may be behind.
const CLOCK_SKEW_MAX_MS: u64 = 5 * 60 * 1000;

/// The pepper that every cluster has: its own id.
const PEPPER_OF_CLUSTER: u32 = 0;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Which keys there are.
    List { is_stale: bool },
    /// Another key.
    Create(Box<Wish>),
    /// Another secret for a key; the one before it holds for `overlap_ms` yet.
    Rotate { id: KeyId, overlap_ms: u64 },
    /// A key that holds no more.
    Revoke(KeyId),
    /// Nothing more of a revoked key.
    Remove(KeyId),
}

/// What a key shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    tenant: TenantName,
    scopes: BTreeSet<Scope>,
    requests_per_minute: Limit<u64>,
    tokens_per_minute: Limit<u64>,
    expires_ms: Option<u64>,
}

pub(super) fn command() -> Command {
    let id = || required("id", "ID", "The key's public part, as list shows it");
    group("key", "Look at the keys of clients, make them and withdraw them")
        .subcommand(list("Show the keys; their secrets are nowhere"))
        .subcommand(
            Command::new("create")
                .about("Make a key and print it, this once")
                .arg(
                    Arg::new("tenant")
                        .long("tenant")
                        .value_name("TENANT")
                        .required(true)
                        .help("Whose it is"),
                )
                .arg(
                    Arg::new("scopes")
                        .long("scopes")
                        .value_name("SCOPE[,SCOPE]")
                        .value_delimiter(',')
                        .value_parser(|scope: &str| scope.parse::<Scope>())
                        .default_value(SCOPES_DEFAULT)
                        .help("What it allows: inference:GLOB, cache:purge, keys:write, cluster:admin, metrics:read"),
                )
                .arg(limit::arg::<u64>("rpm", "Requests a minute, if tighter than the tenant's"))
                .arg(limit::arg::<u64>("tpm", "Tokens a minute, if tighter than the tenant's"))
                .arg(
                    Arg::new("expires")
                        .long("expires")
                        .value_name("WHEN")
                        .value_parser(|word: &str| {
                            moment::parse_moment(word, moment::now_ms(), EXPIRES_MAX_MS)
                        })
                        .help("When it ends, within 3650d: 12h, 30d, or a time as 2030-01-31T12:00:00Z"),
                ),
        )
        .subcommand(
            Command::new("rotate").about("Give a key another secret and print it, this once").arg(id()).arg(
                Arg::new("overlap")
                    .long("overlap")
                    .value_name("SPAN")
                    .value_parser(|word: &str| moment::parse_span(word, OVERLAP_MAX_MS))
                    .default_value(OVERLAP_DEFAULT)
                    .help("How long the secret before it holds yet, as 12h or 30d; at most 90d"),
            ),
        )
        .subcommand(Command::new("revoke").about("Withdraw a key for good").arg(id()))
        .subcommand(Command::new("remove").about("Forget a revoked key").arg(id()))
}

// === impl Action ===

impl Action {
    pub(super) fn parse(action: &str, matches: &ArgMatches) -> Result<Self, Failure> {
        let id = || word(matches, "id").map(KeyId::from);
        match action {
            "list" => Ok(Self::List { is_stale: matches.get_flag("stale") }),
            "create" => Ok(Self::Create(Box::new(Wish {
                tenant: word(matches, "tenant")?.into(),
                scopes: matches.get_many("scopes").unwrap_or_default().cloned().collect(),
                requests_per_minute: limit::of(matches, "rpm"),
                tokens_per_minute: limit::of(matches, "tpm"),
                expires_ms: matches.get_one("expires").copied(),
            }))),
            "rotate" => {
                let overlap_ms = matches.get_one("overlap").copied().unwrap_or_default();
                Ok(Self::Rotate { id: id()?, overlap_ms })
            }
            "revoke" => id().map(Self::Revoke),
            "remove" => id().map(Self::Remove),
            other => Err(unknown_action("key", other)),
        }
    }

    pub(super) async fn run(
        self,
        session: &mut Session,
        resolved: &Resolved,
    ) -> Result<Answer, Failure> {
        match self {
            Self::List { is_stale } => {
                Ok(keys(&session.read_to_show(is_stale).await?, moment::now_ms()))
            }
            Self::Create(wish) => {
                tenant::check_known(&session.read().await?.view, &wish.tenant)?;
                let pepper = pepper(session, resolved).await?;
                let now_ms = moment::now_ms();
                let text = ApiKeyText::generate(ENV, &random()?).map_err(|error| bug(&error))?;
                let key = wish.key(text.id(), secret(&text, &pepper, now_ms));
                let row = row(&key, now_ms);
                let index = session.submit(Change::PutKey(key)).await?;
                Ok(shown_once(&text, &format!("of tenant {}", wish.tenant), row).at(index))
            }
            Self::Rotate { id, overlap_ms } => {
                let seen = session.read().await?;
                let known = known(&seen.view, &id)?;
                let pepper = pepper(session, resolved).await?;
                let now_ms = moment::now_ms();
                let text = ApiKeyText::regenerate(ENV, &id, &random()?);
                let text = text.map_err(|error| bug(&error))?;
                let old_expires_ms = now_ms.saturating_add(overlap_ms);
                let secret = secret(&text, &pepper, now_ms);
                let mut row = row(known, now_ms);
                row["pepper_version"] = pepper.version.into();
                row["old_secret_expires"] = moment::shown(old_expires_ms).into();
                let index =
                    session.submit(Change::RotateKey { id, secret, old_expires_ms }).await?;
                let until = moment::shown(old_expires_ms);
                let of = format!("has another secret; the one before holds until {until}");
                Ok(shown_once(&text, &of, row).at(index))
            }
            Self::Revoke(id) => {
                known(&session.read().await?.view, &id)?;
                let row = json!({"id": id.as_str(), "state": "revoked"});
                let text = format!("key {id} is revoked");
                Ok(Answer::done(text, row, session.submit(Change::RevokeKey(id)).await?))
            }
            Self::Remove(id) => {
                known(&session.read().await?.view, &id)?;
                let row = json!({"id": id.as_str(), "removed": true});
                let text = format!("key {id} is no more");
                Ok(Answer::done(text, row, session.submit(Change::RemoveKey(id)).await?))
            }
        }
    }
}

// === impl Wish ===

impl Wish {
    fn key(&self, id: KeyId, secret: KeySecret) -> ApiKey {
        ApiKey {
            id,
            tenant: self.tenant.clone(),
            scopes: self.scopes.clone(),
            limits: KeyLimits {
                requests_per_minute: self.requests_per_minute.over(None),
                tokens_per_minute: self.tokens_per_minute.over(None),
            },
            secrets: vec![secret],
            expires_ms: self.expires_ms,
            revoked: false,
        }
    }
}

/// What is kept of a key that was just made.
fn secret(text: &ApiKeyText, pepper: &Pepper, now_ms: u64) -> KeySecret {
    KeySecret {
        hmac: text.hmac(pepper),
        pepper_version: pepper.version,
        not_before_ms: now_ms.saturating_sub(CLOCK_SKEW_MAX_MS),
        expires_ms: None,
    }
}

fn random() -> Result<[u8; RANDOM_BYTES], Failure> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Failed(format!("the system has no randomness: {error}")))?;
    Ok(bytes)
}

/// The pepper told, or else the cluster's own.
async fn pepper(session: &Session, resolved: &Resolved) -> Result<Pepper, Failure> {
    match resolved.text(&settings::OPERATOR_PEPPER_FILE) {
        Some(path) => {
            let version = resolved.integer(&settings::OPERATOR_PEPPER_VERSION).unwrap_or(1);
            pepper_in(Path::new(path), u32::try_from(version).unwrap_or(u32::MAX))
        }
        None => {
            let id = session.status().await?.cluster_id;
            Pepper::new(PEPPER_OF_CLUSTER, id.into_bytes()).map_err(|error| bug(&error))
        }
    }
}

/// A pepper from a file; the newline that an editor leaves at its end is not part of it.
fn pepper_in(path: &Path, version: u32) -> Result<Pepper, Failure> {
    let fault = |problem: String| Failure::usage(format!("{}: {problem}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| fault(format!("cannot be read: {error}")))?;
    let bytes = bytes.trim_ascii_end().to_vec();
    Pepper::new(version, bytes).map_err(|error| fault(error.to_string()))
}

fn bug(error: &dyn std::error::Error) -> Failure {
    Failure::Failed(error.to_string())
}

fn known<'a>(view: &'a ClusterView, id: &KeyId) -> Result<&'a ApiKey, Failure> {
    let key = view.keys.get(id);
    key.ok_or_else(|| unknown("key", id.as_str(), view.keys.keys().map(KeyId::as_str)))
}

/// An answer that holds a whole key.
fn shown_once(text: &ApiKeyText, of: &str, mut row: Value) -> Answer {
    row["key"] = text.reveal().into();
    let id = text.id();
    let key = text.reveal();
    Answer {
        text: format!("key {id} {of}\n\n{key}\n\nThis is the only time it is shown.\n"),
        json: row,
    }
}

fn keys(seen: &Seen, now_ms: u64) -> Answer {
    let mut table = Table::new([
        Column::Left("ID"),
        Column::Left("TENANT"),
        Column::Left("STATE"),
        Column::Left("EXPIRES"),
        Column::Right("RPM"),
        Column::Right("TPM"),
        Column::Right("PEPPER"),
        Column::Left("SCOPES"),
    ]);
    for key in seen.view.keys.values() {
        let scopes: Vec<String> = key.scopes.iter().map(ToString::to_string).collect();
        table.row([
            key.id.to_string(),
            key.tenant.to_string(),
            state(key, now_ms).to_owned(),
            limit::shown(key.expires_ms.map(moment::shown)),
            limit::shown(key.limits.requests_per_minute),
            limit::shown(key.limits.tokens_per_minute),
            limit::shown(key.secrets.last().map(|secret| secret.pepper_version)),
            scopes.join(","),
        ]);
    }
    let rows = seen.view.keys.values().map(|key| row(key, now_ms)).collect();
    seen.answer(table.or("there is no key"), "keys", rows)
}

fn row(key: &ApiKey, now_ms: u64) -> Value {
    let scopes: Vec<String> = key.scopes.iter().map(ToString::to_string).collect();
    json!({
        "id": key.id.as_str(),
        "tenant": key.tenant.as_str(),
        "state": state(key, now_ms),
        "expires": key.expires_ms.map(moment::shown),
        "rpm": key.limits.requests_per_minute,
        "tpm": key.limits.tokens_per_minute,
        "pepper_version": key.secrets.last().map(|secret| secret.pepper_version),
        "scopes": scopes,
    })
}

fn state(key: &ApiKey, now_ms: u64) -> &'static str {
    match key.live_secrets(now_ms).count() {
        _ if key.revoked => "revoked",
        0 => "expired",
        1 => "live",
        _ => "rotating",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_893_456_000_000;

    fn wish(words: &[&str]) -> Wish {
        let matches = command().try_get_matches_from([&["key", "create"], words].concat()).unwrap();
        match Action::parse("create", matches.subcommand().unwrap().1) {
            Ok(Action::Create(wish)) => *wish,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_printed_is_a_key_and_what_is_kept_verifies_it() {
        let pepper = Pepper::new(3, vec![7; 36]).unwrap();
        let text = ApiKeyText::generate(ENV, &random().unwrap()).unwrap();
        let key =
            wish(&["--tenant", "acme", "--rpm", "5"]).key(text.id(), secret(&text, &pepper, NOW));
        let answer = shown_once(&text, "of tenant acme", row(&key, NOW));
        let printed = answer.text.lines().find(|line| line.starts_with("sk-live-")).unwrap();
        assert_eq!(answer.json["key"], printed);
        let read = ApiKeyText::parse(printed).unwrap();
        assert_eq!(read.id(), key.id);
        let kept = key.live_secrets(NOW - CLOCK_SKEW_MAX_MS).next().unwrap();
        assert!(read.verify(&pepper, &kept.hmac));
        let expected = format!(
            r#"{{"id":"{}","tenant":"acme","state":"live","expires":null,"rpm":5,"tpm":null,"pepper_version":3,"scopes":["inference:*"]}}"#,
            key.id
        );
        assert_eq!(row(&key, NOW).to_string(), expected);
        assert!(!format!("{key:?}").contains(printed.split('_').nth(1).unwrap()));
    }

    #[test]
    fn keys_are_shown_without_what_proves_them() {
        let pepper = Pepper::new(0, vec![7; 36]).unwrap();
        let mut view = ClusterView::default();
        let ends = Some(NOW + 10);
        for (byte, revoked, expires_ms) in
            [(1, false, ends), (2, true, None), (3, false, Some(NOW))]
        {
            let text = ApiKeyText::generate(ENV, &[byte; RANDOM_BYTES]).unwrap();
            let words = ["--tenant", "acme", "--scopes", "inference:demo-*,metrics:read"];
            let key = wish(&words).key(text.id(), secret(&text, &pepper, NOW));
            let id = KeyId::from(format!("key-{byte}"));
            view.keys.insert(id.clone(), ApiKey { id, revoked, expires_ms, ..key });
        }
        let expected = "ID     TENANT  STATE    EXPIRES               RPM  TPM  PEPPER  SCOPES
key-1  acme    live     2030-01-01T00:00:00Z    -    -       0  inference:demo-*,metrics:read
key-2  acme    revoked  -                       -    -       0  inference:demo-*,metrics:read
key-3  acme    expired  2030-01-01T00:00:00Z    -    -       0  inference:demo-*,metrics:read
";
        assert_eq!(keys(&Seen::for_test(view, false), NOW).text, expected);
    }

    #[test]
    fn what_a_key_cannot_be_is_refused() {
        for (words, part) in [
            (&["create"][..], "--tenant"),
            (&["create", "--tenant", "t", "--scopes", "all"], "must be inference:GLOB"),
            (&["create", "--tenant", "t", "--expires", "soon"], "12h or 30d"),
            (&["create", "--tenant", "t", "--rpm", "few"], "must be a whole number"),
            (&["rotate", "x", "--overlap", "a-day"], "must be a span"),
        ] {
            let refusal = command().try_get_matches_from([&["key"], words].concat()).unwrap_err();
            assert!(refusal.to_string().contains(part), "{refusal}");
        }
    }

    #[test]
    fn a_pepper_is_long_enough_and_ends_before_the_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let short = "0123456789abcdef0123456789abcde";
        std::fs::write(file.path(), format!("{short}\n")).unwrap();
        let refusal = pepper_in(file.path(), 1).unwrap_err();
        let line =
            format!("{}: pepper has 31 bytes, at least 32 are needed", file.path().display());
        assert_eq!(refusal, Failure::usage(line));
        std::fs::write(file.path(), format!("{short}f\n")).unwrap();
        let text = ApiKeyText::generate(ENV, &[1; RANDOM_BYTES]).unwrap();
        let kept = text.hmac(&pepper_in(file.path(), 2).unwrap());
        let bare = Pepper::new(2, format!("{short}f").into_bytes()).unwrap();
        assert!(text.verify(&bare, &kept));
    }
}
