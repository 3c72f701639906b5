//! What to draw from a row of logits, and what was drawn.

/// How to draw one token from one row of logits. Order of work, as in vLLM: log probabilities are taken
/// from the raw logits; then bias, penalties and bans; then temperature, top-k, min-p, top-p; then the draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    /// 0: the likeliest token, the lowest id among equals.
    pub temperature: f32,
    /// Keep the k likeliest; 0: all.
    pub top_k: u32,
    /// Keep the likeliest tokens up to this mass.
    pub top_p: f32,
    /// Drop tokens below this share of the likeliest one's probability.
    pub min_p: f32,
    /// Where in the cumulative distribution to draw, in [0, 1): a pure function of (seed, position).
    pub uniform: f32,
    /// Added to logits.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that may not be drawn.
    pub banned: Vec<u32>,
    /// Penalties, when any is on.
    pub penalties: Option<Penalties>,
    /// Report the chosen token's log probability and this many of the best.
    pub top_logprobs: Option<u32>,
}

/// Repetition control, as OpenAI (presence, frequency) and Hugging Face (repetition) define it.
#[derive(Clone, Debug, PartialEq)]
pub struct Penalties {
    /// Subtracted once per distinct generated token.
    pub presence: f32,
    /// Subtracted per occurrence of a generated token.
    pub frequency: f32,
    /// Positive logits of seen tokens are divided by it, negative ones multiplied.
    pub repetition: f32,
    /// Generated tokens and how often each occurred, ids unique.
    pub generated: Vec<(u32, u32)>,
    /// Distinct tokens of the prompt; filled only when `repetition` is not 1.
    pub prompt: Vec<u32>,
}

/// What was drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampled {
    /// A token.
    Token {
        /// Its id.
        id: u32,
        /// Its raw log probability and the best tokens', best first; only when asked for.
        logprobs: Option<Logprobs>,
    },
    /// The row holds NaN, or no finite logit may be drawn.
    Numerical,
}

/// Raw log probabilities of one draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Of the best tokens, best first.
    pub top: Vec<(u32, f32)>,
}
