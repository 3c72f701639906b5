//! The API keys that clients send, and what is kept of them.
//!
//! ```text
//! sk-<env>-<id, 12>_<secret, 32>_<check, 6>          every part in base62
//! ```
//!
//! The id finds the key; the secret proves it; the check, a CRC-32 of all before it, lets a mistyped key be
//! refused, and a leaked one be recognised, without asking anybody. The cluster keeps an HMAC-SHA-256 of the
//! secret under a pepper that is not in its state, so that neither alone is of use to a thief. The secret has
//! 190 random bits, so a slow hash would add nothing but load.
//!
//! Pure: randomness and peppers come from the caller.

use std::fmt;

use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::base64_text::Base64Text;
use crate::id::KeyId;

const PREFIX: &str = "sk-";
const SECRET_CHARS: usize = 32;
const CHECK_CHARS: usize = 6;

/// How many characters an id has.
pub const ID_CHARS: usize = 12;

/// The longest environment in a key, in bytes: a word such as "live" or "staging".
pub const ENV_BYTES_MAX: usize = 16;

/// The fewest bytes in a pepper: as many as the digest has.
pub const PEPPER_BYTES_MIN: usize = 32;

/// The random bytes that a key is made of.
pub const RANDOM_BYTES: usize = 48;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A whole key, as its client knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeyText {
    text: String,
    /// Where the id begins.
    id_at: usize,
}

/// Why a text is not a key, or a key cannot be made. No variant tells the text: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// It is something else.
    #[error("key is not of the form sk-ENV-ID_SECRET_CHECK")]
    Form,
    /// It looks like a key, but a letter is wrong.
    #[error("key does not match its check: it is mistyped or cut short")]
    Check,
    /// An environment that no key can carry.
    #[error("environment {env:?} must be 1 to {ENV_BYTES_MAX} lower-case letters and digits")]
    Env {
        /// As given.
        env: String,
    },
}

/// What secrets are mixed with before they are kept; itself kept outside the cluster's state.
#[derive(Clone)]
pub struct Pepper {
    /// Which one, so that it can be replaced while older keys hold.
    pub version: u32,
    bytes: Vec<u8>,
}

/// A pepper that is too short to protect anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pepper has {bytes} bytes, at least {PEPPER_BYTES_MIN} are needed")]
pub struct PepperSizeError {
    /// How many were given.
    pub bytes: usize,
}

/// What is kept of a secret.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Base64Text", into = "Base64Text")]
pub struct SecretHmac([u8; Self::BYTES]);

/// An HMAC of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hmac has {bytes} bytes, it must have {}", SecretHmac::BYTES)]
pub struct HmacSizeError {
    /// How many were given.
    pub bytes: usize,
}

/// Whether it can be the id of a key.
pub fn is_id(id: &KeyId) -> bool {
    is_base62(id.as_str(), ID_CHARS)
}

// === impl ApiKeyText ===

impl ApiKeyText {
    /// A key of environment `env`, made of random bytes that are used for nothing else.
    ///
    /// # Errors
    /// [`ApiKeyError::Env`].
    pub fn generate(env: &str, random: &[u8; RANDOM_BYTES]) -> Result<Self, ApiKeyError> {
        let (id, secret) = random.split_at(RANDOM_BYTES / 3);
        Self::assemble(env, &base62(number(id), ID_CHARS), secret)
    }

    /// Another secret for the key `id`: for a rotation. Only the last two thirds of `random` are used.
    ///
    /// # Errors
    /// [`ApiKeyError::Env`]; [`ApiKeyError::Form`] when `id` is not that of a key.
    pub fn regenerate(
        env: &str,
        id: &KeyId,
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Self, ApiKeyError> {
        if !is_id(id) {
            return Err(ApiKeyError::Form);
        }
        let (_unused, secret) = random.split_at(RANDOM_BYTES / 3);
        Self::assemble(env, id.as_str(), secret)
    }

    fn assemble(env: &str, id: &str, random: &[u8]) -> Result<Self, ApiKeyError> {
        if !is_env(env) {
            return Err(ApiKeyError::Env { env: env.to_owned() });
        }
        let (first, second) = random.split_at(random.len() / 2);
        let half = SECRET_CHARS / 2;
        let mut text = format!("{PREFIX}{env}-");
        let id_at = text.len();
        text.extend([id, "_", &base62(number(first), half), &base62(number(second), half)]);
        let check = check_of(&text);
        text.extend(["_", &check]);
        Ok(Self { text, id_at })
    }

    /// Reads a key that a client sent.
    ///
    /// # Errors
    /// [`ApiKeyError::Form`] or [`ApiKeyError::Check`]. Whether the key exists is another question.
    pub fn parse(text: &str) -> Result<Self, ApiKeyError> {
        let rest = text.strip_prefix(PREFIX).ok_or(ApiKeyError::Form)?;
        let (env, parts) = rest.split_once('-').ok_or(ApiKeyError::Form)?;
        let mut parts = parts.split('_');
        let (id, secret, check) = (parts.next(), parts.next(), parts.next());
        let is_part = |part: Option<&str>, chars| part.is_some_and(|part| is_base62(part, chars));
        let is_key = is_env(env)
            && is_part(id, ID_CHARS)
            && is_part(secret, SECRET_CHARS)
            && is_part(check, CHECK_CHARS)
            && parts.next().is_none();
        if !is_key {
            return Err(ApiKeyError::Form);
        }
        let (checked, check) = text.split_at(text.len() - CHECK_CHARS);
        if check_of(&checked[..checked.len() - 1]) != check {
            return Err(ApiKeyError::Check);
        }
        Ok(Self { text: text.to_owned(), id_at: PREFIX.len() + env.len() + 1 })
    }

    /// The public part, by which the key is found.
    pub fn id(&self) -> KeyId {
        KeyId::from(&self.text[self.id_at..self.id_at + ID_CHARS])
    }

    /// What is kept of the secret.
    pub fn hmac(&self, pepper: &Pepper) -> SecretHmac {
        SecretHmac(self.mac(pepper).finalize().into_bytes().into())
    }

    /// Whether the secret is the one `kept` was made of, in a time that tells nothing.
    pub fn verify(&self, pepper: &Pepper, kept: &SecretHmac) -> bool {
        self.mac(pepper).verify(&kept.0.into()).is_ok()
    }

    /// The whole key, to be shown to its client once.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    fn mac(&self, pepper: &Pepper) -> Hmac<Sha256> {
        let secret_at = self.id_at + ID_CHARS + 1;
        let mac = Hmac::<Sha256>::new_from_slice(&pepper.bytes);
        let mut mac = mac.expect("an HMAC takes a key of any length");
        mac.update(&self.text.as_bytes()[secret_at..secret_at + SECRET_CHARS]);
        mac
    }
}

/// Only the public part.
impl fmt::Debug for ApiKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeyText({}_...)", &self.text[..self.id_at + ID_CHARS])
    }
}

fn is_env(env: &str) -> bool {
    (1..=ENV_BYTES_MAX).contains(&env.len())
        && env.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn is_base62(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The first 16 bytes as a number.
fn number(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// The last `chars` digits of `number`. Of 16 digits out of 128 bits each is as likely, to one part in 2^32.
fn base62(mut number: u128, chars: usize) -> String {
    let mut digits = Vec::with_capacity(chars);
    for _digit in 0..chars {
        let digit = usize::try_from(number % 62).unwrap_or_default();
        digits.push(char::from(DIGITS[digit]));
        number /= 62;
    }
    digits.iter().rev().collect()
}

fn check_of(text: &str) -> String {
    base62(u128::from(crc32(text.as_bytes())), CHECK_CHARS)
}

/// CRC-32 as in zlib and PNG, bit by bit: a key is short.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
    let update = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _bit| step(crc));
    !bytes.iter().fold(u32::MAX, update)
}

// === impl Pepper ===

impl Pepper {
    /// The pepper `version`.
    ///
    /// # Errors
    /// [`PepperSizeError`] when it is too short.
    pub fn new(version: u32, bytes: Vec<u8>) -> Result<Self, PepperSizeError> {
        if bytes.len() < PEPPER_BYTES_MIN {
            return Err(PepperSizeError { bytes: bytes.len() });
        }
        Ok(Self { version, bytes })
    }
}

/// Only the version.
impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pepper(version {})", self.version)
    }
}

// === impl SecretHmac ===

impl SecretHmac {
    /// How long it is.
    pub const BYTES: usize = 32;

    /// The bytes, to be sent to another process.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<[u8; Self::BYTES]> for SecretHmac {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for SecretHmac {
    type Error = HmacSizeError;

    fn try_from(bytes: &[u8]) -> Result<Self, HmacSizeError> {
        bytes.try_into().map(Self).map_err(|_size| HmacSizeError { bytes: bytes.len() })
    }
}

impl TryFrom<Base64Text> for SecretHmac {
    type Error = HmacSizeError;

    fn try_from(text: Base64Text) -> Result<Self, HmacSizeError> {
        text.0.as_slice().try_into()
    }
}

impl From<SecretHmac> for Base64Text {
    fn from(hmac: SecretHmac) -> Self {
        Self(hmac.0.to_vec())
    }
}

/// Nothing of it.
impl fmt::Debug for SecretHmac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHmac(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u8) -> [u8; RANDOM_BYTES] {
        std::array::from_fn(|at| {
            seed.wrapping_mul(31).wrapping_add(u8::try_from(at * 7 % 256).unwrap())
        })
    }

    fn pepper(byte: u8) -> Pepper {
        Pepper::new(1, vec![byte; PEPPER_BYTES_MIN]).unwrap()
    }

    fn key() -> ApiKeyText {
        ApiKeyText::generate("live", &random(1)).unwrap()
    }

    #[test]
    fn a_key_keeps_its_form() {
        let zero = ApiKeyText::generate("live", &[0; RANDOM_BYTES]).unwrap();
        assert_eq!(zero.reveal(), "sk-live-000000000000_00000000000000000000000000000000_1fn27n");
        // The check values published for these two.
        assert_eq!((crc32(b"123456789"), crc32(b"")), (0xCBF4_3926, 0));
    }

    #[test]
    fn a_key_is_read_back_and_any_wrong_letter_is_noticed() {
        let key = key();
        assert_eq!(ApiKeyText::parse(key.reveal()), Ok(key.clone()));
        let text = key.reveal();
        for at in 0..text.len() {
            for letter in ["0", "z", "_", "-", "\u{e9}"] {
                let mistyped = format!("{}{letter}{}", &text[..at], &text[at + 1..]);
                assert!(mistyped == text || ApiKeyText::parse(&mistyped).is_err(), "{mistyped}");
            }
            assert!(ApiKeyText::parse(&text[..at]).is_err(), "cut to {at}");
        }
        assert_eq!(ApiKeyText::parse(&format!("{text}0")), Err(ApiKeyError::Form));
    }

    #[test]
    fn only_the_secret_that_was_kept_verifies_and_only_with_its_pepper() {
        let key = key();
        let kept = key.hmac(&pepper(7));
        assert!(key.verify(&pepper(7), &kept));
        assert!(!key.verify(&pepper(8), &kept));
        let rotated = ApiKeyText::regenerate("live", &key.id(), &random(2)).unwrap();
        assert_eq!(rotated.id(), key.id());
        assert!(!rotated.verify(&pepper(7), &kept));
    }

    #[test]
    fn an_environment_or_a_pepper_of_no_use_is_refused() {
        for env in ["", "Live", "a-b", "a_b", "abcdefghijklmnopq"] {
            let refusal = ApiKeyText::generate(env, &random(1));
            assert_eq!(refusal, Err(ApiKeyError::Env { env: env.to_owned() }));
        }
        assert_eq!(
            Pepper::new(1, vec![0; 31]).unwrap_err().to_string(),
            "pepper has 31 bytes, at least 32 are needed"
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let key = key();
        let (pepper, kept) = (pepper(7), key.hmac(&pepper(7)));
        let shown = format!("{key:?} {pepper:?} {kept:?}");
        let id = key.id();
        assert_eq!(shown, format!("ApiKeyText(sk-live-{id}_...) Pepper(version 1) SecretHmac(..)"));
    }
}
