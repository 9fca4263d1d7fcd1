int fastlstm_placeholder;
