use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Dma, Engine};

/// What a model remembers: variables and machines by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineState {
    /// The name of the model.
    pub model: String,
    /// Values of variables, and the numbers of machines' states.
    pub variables: BTreeMap<String, u64>,
}

/// Why a saved state is none of this model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is of another model.
    #[error("the state is of model {found:?}, not {expected:?}")]
    Model {
        /// This model.
        expected: String,
        /// The state's.
        found: String,
    },
    /// A variable is missing or unknown.
    #[error("the state and the model differ in variable {0:?}")]
    Variable(String),
    /// A value that the variable cannot have.
    #[error("variable {name:?} cannot be {value:#x}")]
    Value {
        /// The variable.
        name: String,
        /// The value.
        value: u64,
    },
}

impl<D: Dma> Engine<D> {
    /// What the model remembers.
    pub fn save(&self) -> EngineState {
        let value = |slot| self.frame.get(slot);
        let variables = self.model.variables.iter();
        EngineState {
            model: self.model.name.clone(),
            variables: variables
                .map(|variable| (variable.name.clone(), value(variable.slot)))
                .collect(),
        }
    }

    /// Sets what [`save`](Self::save) gave. The device is not touched: the arbiter replays what the model says.
    ///
    /// # Errors
    ///
    /// The state is not one of this model; nothing was set.
    pub fn restore(&mut self, state: &EngineState) -> Result<(), StateError> {
        let EngineState {
            model: name,
            variables,
        } = state;
        if *name != self.model.name {
            return Err(StateError::Model {
                expected: self.model.name.clone(),
                found: name.clone(),
            });
        }
        let mut values = Vec::new();
        for variable in &self.model.variables {
            let missing = || StateError::Variable(variable.name.clone());
            let value = *variables.get(&variable.name).ok_or_else(missing)?;
            let machine = self.model.machines.iter().find(|m| m.slot == variable.slot);
            let states = machine.and_then(|machine| u64::try_from(machine.states.len()).ok());
            let fits = states.map_or(value <= u64::MAX >> (64 - variable.bits), |n| value < n);
            if !fits {
                let name = variable.name.clone();
                return Err(StateError::Value { name, value });
            }
            values.push((variable.slot, value));
        }
        let known = |name: &&String| self.model.variables.iter().any(|v| v.name == **name);
        if let Some(name) = variables.keys().find(|name| !known(name)) {
            return Err(StateError::Variable(name.clone()));
        }
        for (slot, value) in values {
            self.frame.set(slot, value);
        }
        self.state = self.model.key.state(&self.frame);
        Ok(())
    }
}
