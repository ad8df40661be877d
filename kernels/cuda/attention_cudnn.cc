// attention_cudnn
