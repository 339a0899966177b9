"""What can be asked of a trained model, and what each answer says and does not say. Imports nothing heavy."""

from typing import NamedTuple


class Method(NamedTuple):
    title: str
    source: str
    says: str
    says_not: str


METHODS = {
    "saliency": Method(
        "Saliency",
        "Simonyan et al. 2014; times the input (Shrikumar et al. 2017) for tokens",
        "How fast the score changes when this part of the input changes a little: the gradient of the score.",
        "It does not say how much of the score this part has made, and it is small where the score no longer moves.",
    ),
    "integrated_gradients": Method(
        "Integrated gradients",
        "Sundararajan et al. 2017",
        "How much of the score this part brings on the straight way from the baseline to the input; "
        "all parts together make up the difference of the two scores.",
        "It does not say what another baseline or another way would give, "
        "and inputs on the way may look like nothing the model was trained on.",
    ),
    "grad_cam": Method(
        "Grad-CAM",
        "Selvaraju et al. 2017",
        "Where the last feature maps speak for the class: the maps, weighted by the mean gradient of the score.",
        "It does not say which pixels matter, for it is as coarse as those maps, nor what speaks against the class.",
    ),
    "occlusion": Method(
        "Occlusion",
        "Zeiler & Fergus 2014",
        "How much of the score is lost when this part is covered by the baseline.",
        "It does not say what parts do together: where one can stand in for another, neither seems to matter.",
    ),
    "lime": Method(
        "LIME",
        "Ribeiro et al. 2016, by captum",
        "The weight of this part in a linear model that imitates the score while parts are covered at random.",
        "It does not say how well a linear model can imitate this one, "
        "and other random covers or regions give other weights.",
    ),
    "shap": Method(
        "SHAP values",
        "Lundberg & Lee 2017, by captum",
        "The share of this part in the score: the mean of what it adds to all (or many random) sets of other parts.",
        "It does not say what the model would do with such inputs if they were real, "
        "and for more than 6 parts it is an estimate from random orders.",
    ),
    "attention": Method(
        "Attention maps",
        "Vaswani et al. 2017",
        "Which places each attention layer mixes into which: the weights of its values.",
        "It does not say what the prediction rests on: other weights may give the same prediction, "
        "and what is mixed may not be used.",
    ),
    "features": Method(
        "Feature visualisation",
        "Erhan et al. 2009; Olah et al. 2017",
        "An image that makes the score of a class, or the mean of a feature map, as large as gradient ascent can.",
        "It does not say what such images look like in the data: it is one of many, shaped by what keeps it smooth.",
    ),
    "gradients": Method(
        "Gradient heat map",
        "root mean square of each matrix's gradient",
        "Which layers a step on this sample alone would change most, with the checkpoint's weights.",
        "It does not say which layers matter for the prediction, nor what the optimiser would make of these gradients.",
    ),
    "landscape": Method(
        "Loss landscape",
        "Li et al. 2018",
        "The loss on one batch of training data around the trained weights, "
        "along random directions whose filters are as large as the model's own.",
        "It does not say what the loss does along the directions that training took, nor between them: "
        "two of very many dimensions are shown.",
    ),
}
ATTRIBUTIONS = ("saliency", "integrated_gradients", "grad_cam", "occlusion", "lime", "shap")  # a number for each part
BY_CAPTUM = ("lime", "shap")
