//! Rotary position embedding: the angle of each pair of elements at each position (Su et al., "RoFormer",
//! 2021), with the stretchings that longer contexts were trained with.

use phalanx_kernels::RopeTable;

/// How frequencies are stretched beyond the context a model was first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// How much longer.
        factor: f64,
    },
    /// Llama 3: low frequencies by `factor`, high ones not at all, those between smoothly.
    Llama3 {
        /// How much longer.
        factor: f64,
        /// Waves longer than `original_context / low_frequency_factor` are stretched fully.
        low_frequency_factor: f64,
        /// Waves shorter than `original_context / high_frequency_factor` are kept.
        high_frequency_factor: f64,
        /// Positions of the first training.
        original_context: f64,
    },
}

/// The angles of positions `0..positions` for heads of `head_dim` elements.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "positions and sizes are far below 2^24; angles are computed in f64 and stored in f32"
)]
pub fn table(positions: usize, head_dim: usize, theta: f64, scaling: RopeScaling) -> RopeTable {
    let half_dim = head_dim / 2;
    let frequencies: Vec<f32> = (0..half_dim)
        .map(|pair| {
            let plain = theta.powf(-2.0 * pair as f64 / head_dim as f64);
            stretch(plain, scaling) as f32
        })
        .collect();
    let mut table = RopeTable { half_dim, cos: Vec::new(), sin: Vec::new() };
    for position in 0..positions {
        for frequency in &frequencies {
            // As Hugging Face: the product is rounded to f32 before cosine and sine.
            let angle = position as f32 * frequency;
            table.cos.push(angle.cos());
            table.sin.push(angle.sin());
        }
    }
    table
}

fn stretch(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_context,
        } => {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength < original_context / high {
                frequency
            } else if wavelength > original_context / low {
                frequency / factor
            } else {
                let smooth = (original_context / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_keeps_high_frequencies_and_stretches_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        assert_eq!(stretch(1.0, scaling), 1.0);
        assert_eq!(stretch(1e-5, scaling), 1e-5 / 8.0);
        // Wavelength 4,096: original_context / wavelength is 2, so a third of the way from low to high.
        let frequency = 2.0 * std::f64::consts::PI / 4096.0;
        let expected = frequency * (2.0 / 3.0 / 8.0 + 1.0 / 3.0);
        assert!((stretch(frequency, scaling) - expected).abs() < 1e-12);
    }

    #[test]
    fn angles_turn_with_position() {
        let table = table(3, 4, 10_000.0, RopeScaling::None);
        assert_eq!(table.cos.len(), 6);
        assert!((table.cos[2] - 1f32.cos()).abs() < 1e-7);
        assert!((table.sin[5] - 0.02f32.sin()).abs() < 1e-7);
    }
}
