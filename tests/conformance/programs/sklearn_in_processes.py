# state: scikit-learn with processes
# end: killed
# needs: scikit-learn

# %%
import numpy, sklearn.linear_model, sklearn.model_selection

x = numpy.random.default_rng(0).random((60, 3))
y = (x[:, 0] > 0.5).astype(int)
print(
    sklearn.model_selection.cross_val_score(sklearn.linear_model.LogisticRegression(), x, y, n_jobs=2).round(
        3
    )
)
