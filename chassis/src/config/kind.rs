//! What the value of a setting may be, and how it is read from text or from TOML.

use toml::de::DeValue;
use tracing_subscriber::EnvFilter;

/// What a setting accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text but none.
    Text,
    /// A path of the file system.
    Path,
    /// `HOST:PORT`; port 0 asks the system for a free one.
    Address,
    /// `http://HOST[:PORT]`.
    Url,
    /// One or more URLs: separated by commas, or a list in the file.
    Urls,
    /// `ID=URL` pairs: separated by commas, or a list in the file.
    Peers,
    /// Texts without spaces: a flag given several times, separated by spaces in a variable, or a list in the file.
    Words,
    /// A filter of log levels, as `info,phalanx_router=debug`.
    LogFilter,
    /// A whole number within bounds, both included.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A number that is not negative, with a point or without.
    Decimal,
    /// One or more of these: separated by commas, or a list in the file.
    Decimals,
    /// On when named; `true` or `false` elsewhere.
    Switch,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An option whose other values need a feature that this build does not have.
    Only(&'static str),
}

/// A value that its [`Kind`] accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text, address, URL, path, word or decimal number.
    Text(String),
    /// A whole number.
    Integer(u64),
    /// On or off.
    Switch(bool),
    /// Several texts.
    List(Vec<String>),
}

// === impl Kind ===

impl Kind {
    /// What is accepted, in words that complete "must be".
    pub fn expected(&self) -> String {
        match self {
            Self::Text => "a text that is not empty".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Address => "HOST:PORT with a port from 0 to 65535".to_owned(),
            Self::Url => "a URL as http://HOST:PORT".to_owned(),
            Self::Urls => "one or more URLs as http://HOST:PORT".to_owned(),
            Self::Peers => "ID=URL pairs as 1=http://HOST:PORT, with ids from 1".to_owned(),
            Self::Words => "one or more texts without spaces".to_owned(),
            Self::LogFilter => "a log filter as info or info,phalanx_router=debug".to_owned(),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Decimal => "a number of 0 or more".to_owned(),
            Self::Decimals => "one or more numbers of 0 or more".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Only(word) => format!("{word}: other values are not available in this build"),
        }
    }

    /// The name of a value in `--help`.
    pub const fn value_name(&self) -> &'static str {
        match self {
            Self::Text | Self::OneOf(_) | Self::Only(_) => "TEXT",
            Self::Path => "PATH",
            Self::Address => "HOST:PORT",
            Self::Url => "URL",
            Self::Urls => "URL[,URL]",
            Self::Peers => "ID=URL[,ID=URL]",
            Self::Words => "TEXT",
            Self::LogFilter => "FILTER",
            Self::Integer { .. } | Self::Decimal => "N",
            Self::Decimals => "N[,N]",
            Self::Switch => "true|false",
        }
    }

    /// Reads a value from a flag or a variable.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Integer { min, max } => text
                .parse::<u64>()
                .ok()
                .filter(|number| (min..=max).contains(&number))
                .map(Value::Integer),
            Self::Switch => match text {
                "true" | "1" => Some(Value::Switch(true)),
                "false" | "0" => Some(Value::Switch(false)),
                _ => None,
            },
            Self::Urls | Self::Peers | Self::Decimals => {
                self.parse_list(text.split(',').map(str::trim))
            }
            Self::Words => self.parse_list(text.split_ascii_whitespace()),
            Self::Text
            | Self::Path
            | Self::Address
            | Self::Url
            | Self::LogFilter
            | Self::Decimal
            | Self::OneOf(_)
            | Self::Only(_) => self.accepts(text).then(|| Value::Text(text.to_owned())),
        };
        value.ok_or_else(|| format!("must be {}", self.expected()))
    }

    /// Reads a value from the file, where types are the file's own: a number is not a text.
    pub(super) fn parse_toml(&self, value: &DeValue<'_>) -> Result<Value, String> {
        let refused = || format!("must be {}, got {}", self.expected(), value.type_str());
        match (self, value) {
            (Self::Integer { .. }, DeValue::Integer(number)) => {
                let decimal = i128::from_str_radix(number.as_str(), number.radix());
                self.parse(&decimal.map_or_else(|_| number.as_str().to_owned(), |n| n.to_string()))
            }
            (Self::Switch, DeValue::Boolean(on)) => Ok(Value::Switch(*on)),
            (Self::Decimal, _) => {
                decimal(value).map_or_else(|| Err(refused()), |number| self.parse(&number))
            }
            (Self::Decimals, DeValue::Array(items)) => {
                let numbers: Option<Vec<String>> =
                    items.iter().map(|item| decimal(item.get_ref())).collect();
                let numbers = numbers.unwrap_or_default();
                self.parse_list(numbers.iter().map(String::as_str)).ok_or_else(refused)
            }
            (Self::Urls | Self::Peers | Self::Words, DeValue::Array(items)) => {
                let texts: Option<Vec<&str>> =
                    items.iter().map(|item| item.get_ref().as_str()).collect();
                texts.and_then(|texts| self.parse_list(texts.into_iter())).ok_or_else(refused)
            }
            (Self::Integer { .. } | Self::Switch | Self::Decimals, _) => Err(refused()),
            (_, DeValue::String(text)) => self.parse(text),
            (_, _) => Err(refused()),
        }
    }

    fn parse_list<'a>(&self, items: impl Iterator<Item = &'a str>) -> Option<Value> {
        let items: Vec<String> = items.map(str::to_owned).collect();
        let good = !items.is_empty() && items.iter().all(|item| self.accepts(item));
        good.then_some(Value::List(items))
    }

    /// Whether one text is acceptable; for lists, one item.
    fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Text | Self::Path => !text.is_empty(),
            Self::Address => is_address(text),
            Self::Url | Self::Urls => is_url(text),
            Self::Peers => text
                .split_once('=')
                .is_some_and(|(id, url)| id.parse::<u64>().is_ok_and(|id| id > 0) && is_url(url)),
            Self::Words => !text.is_empty() && !text.contains(char::is_whitespace),
            Self::LogFilter => !text.is_empty() && EnvFilter::try_new(text).is_ok(),
            Self::OneOf(words) => words.contains(&text),
            Self::Only(word) => *word == text,
            Self::Decimal | Self::Decimals => {
                text.parse::<f64>().is_ok_and(|number| number.is_finite() && number >= 0.0)
            }
            Self::Integer { .. } | Self::Switch => false,
        }
    }
}

/// A number of the file, as it would be typed.
fn decimal(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn is_url(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http"))
            && uri.host().is_some_and(|host| !host.is_empty())
            // A port that is none would be taken for a part of the host.
            && (uri.port_u16().is_some() || uri.authority().map(http::uri::Authority::as_str) == uri.host())
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
    })
}
