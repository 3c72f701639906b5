//! A foreign engine as the user writes it: `NAME=URL,model=..,key_env=..,price_in=..,price_out=..`, of which only the
//! URL must be there.

use std::fmt;

use http::{HeaderValue, Uri};
use phalanx_proto::generate::Usage;

use super::Limits;

/// What an engine may be told beside its URL.
const EXPECTED: &str =
    "[NAME=]http://HOST[:PORT][/PATH][,model=NAME][,key_env=VARIABLE][,price_in=N][,price_out=N]";

/// One foreign engine's settings. To hold one is to know they are valid.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ForeignConfig {
    /// What people know it by: given, or the host and port.
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `HOST[:PORT]`, as requests name it.
    pub(crate) authority: HeaderValue,
    /// What comes before `/v1` in every path; empty for most.
    pub(crate) root: String,
    /// The only model it is asked for, whatever it lists.
    pub(crate) model: Option<String>,
    pub(crate) key: Option<Key>,
    pub(crate) price: Price,
}

/// The `Authorization` header that the engine wants. It is never shown.
#[derive(Clone, PartialEq)]
pub(crate) struct Key(pub(crate) HeaderValue);

/// Money for a million tokens, in whatever currency.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Price {
    pub(crate) input: f64,
    pub(crate) output: f64,
}

/// The engines that `texts` describe; each has a name of its own.
pub(super) fn engines(texts: Vec<String>, limits: &mut Limits) -> Vec<ForeignConfig> {
    let environment = |variable: &str| std::env::var(variable).ok();
    let mut engines: Vec<ForeignConfig> = Vec::new();
    for text in texts {
        match ForeignConfig::parse(&text, &environment) {
            Ok(engine) if engines.iter().any(|other| other.name == engine.name) => {
                limits.refuse("engine", text, "given once, or under another name".to_owned());
            }
            Ok(engine) => engines.push(engine),
            Err(expected) => limits.refuse("engine", text, expected),
        }
    }
    engines
}

// === impl ForeignConfig ===

impl ForeignConfig {
    /// Reads `text`; `environment` knows the variables that keys are kept in.
    ///
    /// # Errors
    /// What was expected instead, in words that complete "must be".
    pub(crate) fn parse(
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        let scheme_at = first.find("://").unwrap_or(first.len());
        let (name, url) = match first.find('=').filter(|at| *at < scheme_at) {
            Some(at) => (Some(&first[..at]), &first[at + 1..]),
            None => (None, first),
        };
        if name.is_some_and(|name| HeaderValue::from_str(name).is_err() || name.is_empty()) {
            return Err(EXPECTED.to_owned());
        }
        let mut engine = Self::at(url)?;
        if let Some(name) = name {
            name.clone_into(&mut engine.name);
        }
        for part in parts {
            match part.split_once('=') {
                Some(("model", model)) if !model.is_empty() => {
                    engine.model = Some(model.to_owned());
                }
                Some(("key_env", variable)) => engine.key = Some(key(variable, environment)?),
                Some(("price_in", money)) => engine.price.input = price(money)?,
                Some(("price_out", money)) => engine.price.output = price(money)?,
                _ => return Err(format!("{EXPECTED}: {part:?} is none of these")),
            }
        }
        Ok(engine)
    }

    /// The engine at `url` and nothing else.
    fn at(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| EXPECTED.to_owned())?;
        if uri.scheme_str() == Some("https") {
            return Err(
                "an http:// URL: this build speaks no TLS, put a TLS proxy beside the engine"
                    .to_owned(),
            );
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = match (uri.scheme_str(), authority, uri.query()) {
            (Some("http"), Some(authority), None) if !authority.as_str().contains('@') => authority,
            _ => return Err(EXPECTED.to_owned()),
        };
        let path = uri.path().trim_end_matches('/');
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            name: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port,
            authority: HeaderValue::from_str(authority.as_str())
                .map_err(|_| EXPECTED.to_owned())?,
            // Base URLs are given with and without it.
            root: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            model: None,
            key: None,
            price: Price::default(),
        })
    }
}

fn key(variable: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Key, String> {
    let secret = environment(variable).filter(|secret| !secret.trim().is_empty());
    let secret = secret.ok_or_else(|| {
        format!("followed by key_env with a variable that is set, {variable:?} is not")
    })?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.trim())).map_err(|_| {
        format!("followed by key_env with a variable that holds a key, {variable:?} does not")
    })?;
    value.set_sensitive(true);
    Ok(Key(value))
}

fn price(text: &str) -> Result<f64, String> {
    let money = text.parse::<f64>().ok().filter(|money| money.is_finite() && *money >= 0.0);
    money.ok_or_else(|| format!("followed by prices from 0 for a million tokens, {text:?} is none"))
}

// === impl Price ===

impl Price {
    /// The money for what was used. Cached tokens cost as much as others: not every engine says what it takes off.
    pub(crate) fn of(self, usage: Usage) -> f64 {
        self.of_tokens(f64::from(usage.prompt_tokens), f64::from(usage.completion_tokens))
    }

    /// The money for as many tokens of a prompt, and of its answer.
    pub(crate) fn of_tokens(self, input: f64, output: f64) -> f64 {
        (input * self.input + output * self.output) / 1e6
    }
}

// === impl Key ===

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ForeignConfig, String> {
        let environment = |name: &str| (name == "THE_KEY").then(|| "sk-secret".to_owned());
        ForeignConfig::parse(text, &environment)
    }

    #[test]
    fn a_url_is_enough() {
        let engine = parse("http://gpu-1:8000").unwrap();
        assert_eq!((engine.name.as_str(), engine.host.as_str()), ("gpu-1:8000", "gpu-1"));
        assert_eq!((engine.port, engine.root.as_str()), (8000, ""));
        assert_eq!((engine.model, engine.key, engine.price), (None, None, Price::default()));
    }

    #[test]
    fn everything_can_be_said() {
        let text = "big=http://[::1]/api/v1/,model=a/b,key_env=THE_KEY,price_in=0.5,price_out=2";
        let engine = parse(text).unwrap();
        assert_eq!((engine.name.as_str(), engine.host.as_str()), ("big", "::1"));
        assert_eq!((engine.port, engine.root.as_str()), (80, "/api"));
        assert_eq!(engine.model.as_deref(), Some("a/b"));
        assert_eq!(engine.price, Price { input: 0.5, output: 2.0 });
        let usage = Usage { prompt_tokens: 4, cached_tokens: 3, completion_tokens: 2 };
        assert!((engine.price.of(usage) - 6e-6).abs() < 1e-12);
        assert_eq!(engine.key.as_ref().unwrap().0, "Bearer sk-secret");
        let shown = format!("{engine:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_what_was_expected() {
        for (text, expected) in [
            ("", "[NAME=]http://"),
            ("gpu-1:8000", "[NAME=]http://"),
            ("http://", "[NAME=]http://"),
            ("http://user:secret@a", "[NAME=]http://"),
            ("http://a?b=c", "[NAME=]http://"),
            ("=http://a", "[NAME=]http://"),
            ("https://a", "an http:// URL: this build speaks no TLS"),
            ("http://a,mode=x", r#""mode=x" is none of these"#),
            ("http://a,model=", r#""model=" is none of these"#),
            ("http://a,key_env=NO_KEY", r#"a variable that is set, "NO_KEY" is not"#),
            ("http://a,price_in=-1", r#"from 0 for a million tokens, "-1" is none"#),
            ("http://a,price_out=nan", r#"from 0 for a million tokens, "nan" is none"#),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.contains(expected), "{text}: {refusal}");
        }
    }
}
