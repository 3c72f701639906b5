//! Which engines are worth their money: with a target for the time to the first token, those that meet it for the
//! least. Off unless a target is set. Pure.

use super::cost::Terms;

/// The candidates to choose among, by their places: of those whose first token is due within `target` seconds, the
/// ones that take the least `money`; all of them when none is in time, so that the soonest is chosen.
pub(crate) fn eligible(prices: &[Terms], money: &[f64], target: f64) -> Vec<usize> {
    let offers = || prices.iter().zip(money).enumerate();
    let in_time = || offers().filter(|(_, (terms, _))| terms.first_token() <= target);
    let least = in_time().map(|(_, (_, money))| *money).fold(f64::INFINITY, f64::min);
    let cheapest: Vec<_> =
        in_time().filter(|(_, (_, money))| **money <= least).map(|(index, _)| index).collect();
    if cheapest.is_empty() { (0..prices.len()).collect() } else { cheapest }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn due_in(seconds: f64) -> Terms {
        Terms { wait: seconds, ..Terms::default() }
    }

    #[test]
    fn the_cheap_engine_is_taken_until_it_would_be_late() {
        let money = [5.0, 1.0, 5.0];
        assert_eq!(eligible(&[0.1, 0.9, 0.2].map(due_in), &money, 1.0), [1]);
        assert_eq!(eligible(&[0.1, 1.1, 0.2].map(due_in), &money, 1.0), [0, 2]);
        assert_eq!(eligible(&[1.2, 1.1, 1.3].map(due_in), &money, 1.0), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn nobody_in_time_is_cheaper_than_who_is_chosen_among(
            offers in prop::collection::vec((0.0f64..2.0, 0u8..4), 1..40), target in 0.0f64..2.0,
        ) {
            let prices: Vec<_> = offers.iter().map(|(seconds, _)| due_in(*seconds)).collect();
            let money: Vec<_> = offers.iter().map(|(_, money)| f64::from(*money)).collect();
            let chosen = eligible(&prices, &money, target);
            let in_time = |index: &usize| prices[*index].first_token() <= target;
            let timely: Vec<_> = (0..offers.len()).filter(in_time).collect();
            if timely.is_empty() {
                prop_assert_eq!(chosen.len(), offers.len());
            } else {
                prop_assert!(!chosen.is_empty() && chosen.iter().all(in_time));
                for index in timely {
                    let is_chosen = chosen.contains(&index);
                    let least = money[chosen[0]];
                    prop_assert!(money[index] > least || (is_chosen && money[index] == least));
                }
            }
        }
    }
}
